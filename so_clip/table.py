"""`python -m so_clip.table RESULTS_DIR`: all finished runs as tables of accuracy and memory."""

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from so_clip import atomic
from so_clip.__main__ import guarded
from so_clip.errors import InputError
from so_clip.record import METRICS_FILE, read_metrics

# A row of a table; runs that differ in their seed alone are averaged in it.
ROW = ["backbone", "shots", "method_title", "variant"]
_RUN = ["dataset", *ROW, "seed"]
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
# What a table reads, and of which type.
_NEEDED: dict[str, Any] = {
    **dict.fromkeys(("dataset", "backbone", "method", "method_title"), str),
    **dict.fromkeys(("shots", "seed"), int),
    **dict.fromkeys(("accuracy_percent", "peak_memory_mib"), (int, float)),
    "settings": dict,
}
# Settings that have a column of their own, follow from one, or say where and not what. Which split
# a run used, its checksum tells.
_NOT_A_VARIANT = (
    "dataset",
    "split_file",
    "backbone.architecture",
    "method",
    "shots",
    "seed",
    "adapter.seed",
    "optimizer.seed",
    "data_root",
    "results_dir",
    "evaluation.batch_size",
    "evaluation.workers",
    "evaluation.cache_dir",
    "transfer",  # changes nothing that comes before it
)
# Named wherever it is another, even if all runs have it: their figures mean something else.
_USUAL: dict[str, Any] = {"protocol": "all", "imbalance": None}


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
    runs, skipped = read_runs(options.results_dir)
    out = options.out or options.results_dir / "tables"
    # Those that differ in what they were transferred to are one run as far as the rest goes.
    single = runs.drop_duplicates(_RUN)
    tables = {name: (single, *table) for name, table in TABLES.items()}
    for name, (column, caption) in FURTHER_TABLES.items():
        some = transfers(runs) if name == "transfer" else single
        if column in some and some[column].notna().any():
            tables[name] = some[some[column].notna()], column, caption
    for name, (some, column, caption) in tables.items():
        cells = statistics(some, column)
        markdown = f"{caption}\n\n{to_markdown(cells)}\n"
        atomic.write_text(out / f"{name}.csv", cells.to_csv(index=False))
        atomic.write_text(out / f"{name}.md", markdown)
        print(markdown)
    print(f"{len(runs)} runs; tables in {out}")
    for reason in skipped:
        print(f"so_clip.table: left out: {reason}", file=sys.stderr)


def read_runs(results_dir: Path) -> tuple[pd.DataFrame, list[str]]:
    """Read every finished run below `results_dir`.

    Returns:
        A row a run with the columns of metrics.json and `variant`, and one line for each folder
        that is not a finished run and why.

    Raises:
        InputError: there is no such folder, or no finished run in it.
    """
    if not results_dir.is_dir():
        raise InputError(f"{results_dir}: there is no such folder. Give the one that holds runs.")
    rows: list[dict[str, Any]] = []
    skipped = []
    for config in sorted(results_dir.rglob("config.yaml")):
        folder = config.parent
        if any(part.startswith(".") for part in folder.relative_to(results_dir).parts):
            continue
        try:
            rows.append(_usable(folder) | {"folder": str(folder)})
        except InputError as error:
            skipped.append(str(error))
    if not rows:
        unusable = f" Left out: {' '.join(skipped)}" if skipped else ""
        raise InputError(
            f"{results_dir}: no finished run in it. Start one: python -m so_clip.{unusable}"
        )
    runs = pd.DataFrame(rows)
    runs["variant"] = _variants(runs)
    runs["transferred"] = [str(settings.get("transfer")) for settings in runs["settings"]]
    again = runs.duplicated([*_RUN, "transferred"])
    skipped += [f"{folder}: repeats another run." for folder in runs["folder"][again]]
    return runs[~again].reset_index(drop=True), skipped


def _usable(folder: Path) -> dict[str, Any]:
    """Return a folder's metrics if it is a finished run that a table can show."""
    path = folder / METRICS_FILE
    if not path.is_file():
        raise InputError(f"{folder}: unfinished, it has no {METRICS_FILE}. Repeat the run.")
    metrics = read_metrics(path)
    for key, kind in _NEEDED.items():
        if not isinstance(metrics.get(key), kind):
            raise InputError(f"{path}: {key} is {metrics.get(key)!r}. Repeat the run.")
    return metrics


def statistics(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return the tidy table: a row for each dataset and table row, with `mean`, `std` and `runs`.

    `std` is the sample standard deviation over seeds, empty for a single run.
    """
    cells = runs.groupby(["dataset", *ROW], dropna=False)[column].agg(["mean", "std", "count"])
    return cells.rename(columns={"count": "runs"}).reset_index()


def transfers(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each run and dataset that it was transferred to; empty if there is none.

    `dataset` is where it was tested, `variant` begins with where it was trained.
    """
    rows = []
    for run in runs.to_dict("records"):
        figures = run.get("transfer")
        for name, each in figures.items() if isinstance(figures, dict) else ():
            variant = ", ".join(filter(None, (f"from {run['dataset']}", run["variant"])))
            accuracy = each["accuracy_percent"]
            rows.append(run | {"dataset": name, "variant": variant, "accuracy_percent": accuracy})
    return pd.DataFrame(rows, columns=None if rows else runs.columns).drop_duplicates(_RUN)


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


def _variants(runs: pd.DataFrame) -> pd.Series:
    """Name each run by those settings that differ between the runs of its method.

    Runs of different density, say, are different rows of a table and never one average. A setting
    that follows from the shots, as some schedules do, needs no name.
    """
    flat = [dict(_flatten(settings)) for settings in runs["settings"]]
    for each in flat:
        for option in _USUAL:
            if option in each and each[option] == _USUAL[option]:
                del each[option]
    if "split_sha256" in runs:
        for each, dataset, sha256 in zip(flat, runs["dataset"], runs["split_sha256"], strict=True):
            if runs["split_sha256"][runs["dataset"] == dataset].nunique(dropna=False) > 1:
                each["split"] = str(sha256)[:8]
    names = pd.Series("", index=runs.index)
    for _, group in runs.groupby("method"):
        keys = sorted({key for index in group.index for key in flat[index]})
        at_shots = group.groupby("shots").groups.values()
        varied = [
            key
            for key in keys
            if key in _USUAL
            or any(len({str(flat[index].get(key)) for index in same}) > 1 for same in at_shots)
        ]
        for index in group.index:
            names[index] = ", ".join(
                f"{key}={flat[index][key]}" for key in varied if key in flat[index]
            )
    return names


def _flatten(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if name in _NOT_A_VARIANT:
            continue
        if isinstance(value, dict):
            yield from _flatten(value, f"{name}.")
        else:
            yield name, value


if __name__ == "__main__":
    sys.exit(main())
