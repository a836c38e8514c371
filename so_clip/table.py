"""`python -m so_clip.table RESULTS_DIR`: all finished runs as tables of accuracy and memory."""

import argparse
import math
import sys
from pathlib import Path

import pandas as pd

from so_clip import atomic
from so_clip.__main__ import guarded
from so_clip.report.averages import statistics
from so_clip.report.read import ROW, RUN, read_runs, transfers

TABLES = {
    "accuracy": ("accuracy_percent", "Test accuracy in percent: mean ± standard deviation (runs)"),
    "memory": ("peak_memory_mib", "Peak memory in MiB: mean ± standard deviation (runs)"),
}
# Made where runs have such figures. The accuracy of base-to-new runs in the first table is that of
# their base classes.
FURTHER_TABLES = {
    "new_accuracy": (
        "new_accuracy_percent",
        "Test accuracy on new classes in percent: mean ± standard deviation (runs)",
    ),
    "harmonic_mean": (
        "harmonic_mean_percent",
        "Harmonic mean of base and new accuracy in percent: mean ± standard deviation (runs)",
    ),
    "transfer": (
        "accuracy_percent",
        "Test accuracy on other datasets in percent: mean ± standard deviation (runs)",
    ),
}


def main() -> int:
    """Run the command line; return the process's exit code."""
    return guarded(_main)


def _main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m so_clip.table", description=__doc__)
    parser.add_argument("results_dir", type=Path, help="the folder that holds the runs' folders")
    parser.add_argument(
        "-o", "--out", type=Path, help="folder for the tables (default: RESULTS_DIR/tables)"
    )
    options = parser.parse_args(arguments)
    runs = read_runs(options.results_dir)
    out = options.out or options.results_dir / "tables"
    # Those that differ in what they were transferred to are one run as far as the rest goes.
    single = runs.frame.drop_duplicates(RUN)
    tables = {name: (single, *table) for name, table in TABLES.items()}
    for name, (column, caption) in FURTHER_TABLES.items():
        some = transfers(runs.frame) if name == "transfer" else single
        if column in some and some[column].notna().any():
            tables[name] = some[some[column].notna()], column, caption
    for name, (some, column, caption) in tables.items():
        cells = statistics(some, column)
        markdown = f"{caption}\n\n{to_markdown(cells)}\n"
        atomic.write_text(out / f"{name}.csv", cells.to_csv(index=False))
        atomic.write_text(out / f"{name}.md", markdown)
        print(markdown)
    print(f"{len(runs.frame)} runs; tables in {out}")
    for reason in runs.skipped:
        print(f"so_clip.table: left out: {reason}", file=sys.stderr)


def to_markdown(cells: pd.DataFrame) -> str:
    """Return tidy cells as Markdown: datasets across, and their mean where a row has them all."""
    datasets = sorted(cells["dataset"].unique())
    header = ["backbone", "shots", "method", *datasets]
    average = len(datasets) > 1
    lines = []
    for (backbone, shots, title, variant), group in cells.groupby(ROW, sort=True):
        by_dataset = group.set_index("dataset")
        name = f"{title} ({variant})" if variant else str(title)
        line = [str(backbone), str(shots or "-"), name]
        line += [_cell(by_dataset, dataset) for dataset in datasets]
        if average:
            complete = len(by_dataset) == len(datasets)
            line.append(f"{by_dataset['mean'].mean():.2f}" if complete else "")
        lines.append(line)
    if average:
        header.append("average")
    rule = ["---"] * 3 + ["---:"] * (len(header) - 3)
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *lines])


def _cell(by_dataset: pd.DataFrame, dataset: str) -> str:
    if dataset not in by_dataset.index:
        return ""
    cell = by_dataset.loc[dataset]
    spread = "" if math.isnan(cell["std"]) else f" ± {cell['std']:.2f}"
    return f"{cell['mean']:.2f}{spread} ({cell['runs']})"


if __name__ == "__main__":
    sys.exit(main())
