"""`python -m so_clip.report RESULTS_DIR -o OUT`: runs as tables, plots and one page."""

import argparse
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import pandas as pd

from so_clip import atomic
from so_clip.__main__ import guarded
from so_clip.report import formats, latex
from so_clip.report.flops import forecast_flops
from so_clip.report.missing import add_missing
from so_clip.report.published import add_published
from so_clip.report.read import Runs, read_runs
from so_clip.report.significance import MAX_ROWS, compare, summary
from so_clip.report.tables import Table, make_tables

FOLDER = "tables"
SIGNIFICANCE = (
    "Methods in pairs. Over seeds: Student's paired t of the average over datasets; with three "
    "seeds it finds large and steady differences only. Over test images: the exact sign test on "
    "each dataset (McNemar's, for one seed), p < 0.05 after Holm over all pairs and datasets of "
    "the block. p (Holm) over seeds is over all pairs of the block. Of a block with more than "
    f"{MAX_ROWS} rows the best is compared with each, and adjusted for all pairs of the block. "
    "Rows of uneven shots are not compared."
)
EPILOG = """\
OUT gets index.html (one page that needs no network), tables/ (each as tidy CSV, Markdown, LaTeX and
an HTML fragment; all.tex shows them all) and plots/. Folders that hold no usable run are named on
stderr, one a line, and left out. What a table lacks is said below it, with the command that fills
it."""


def main() -> int:
    """Run the command line; return the process's exit code."""
    return guarded(_main)


def _main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m so_clip.report",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results_dir", type=Path, help="the folder that holds the runs' folders")
    parser.add_argument(
        "-o", "--out", type=Path, help="folder for the report (default: RESULTS_DIR/report)"
    )
    parser.add_argument(
        "--tables-only", action="store_true", help="neither significance nor plots nor page"
    )
    parser.add_argument(
        "--details",
        nargs="+",
        default=[],
        metavar="RUN",
        help="folders of runs whose confusion matrix, reliability, classes, curve and mistakes the "
        "page has to hold; of all runs it holds the best and the newest that fit",
    )
    parser.add_argument(
        "--flops",
        action="store_true",
        help="forecast the FLOPs of training; seconds for each kind of run, the first time",
    )
    options = parser.parse_args(arguments)
    runs = read_runs(options.results_dir)
    remarks = [f"left out: {reason}" for reason in runs.skipped]
    if options.flops:
        runs, unknown = forecast_flops(runs)
        remarks += unknown
    out = options.out or options.results_dir / "report"
    tables = add_published(add_missing(make_tables(runs), runs), runs)
    files = write_tables(tables, out / FOLDER)
    if not options.tables_only:
        remarks += _write_the_rest(runs, tables, files, out, options.details)
    atomic.write_text(out / FOLDER / "all.tex", latex.document(files))
    _tell(runs, tables, out, remarks)


def write_tables(tables: Sequence[Table], folder: Path) -> list[str]:
    """Write the tables, a file a figure and format; return the names of the LaTeX files."""
    files = []
    for name, of_figure in groupby(tables, key=lambda table: table.figure.name):
        each = list(of_figure)
        atomic.write_text(folder / f"{name}.csv", formats.tidy(each).to_csv(index=False))
        for ending, text in (
            ("md", "\n".join(map(formats.to_markdown, each))),
            ("tex", latex.HEADER + "\n".join(map(latex.to_latex, each))),
            ("html", "\n".join(map(formats.to_html, each))),
        ):
            atomic.write_text(folder / f"{name}.{ending}", text)
        files.append(f"{name}.tex")
    return files


def _write_the_rest(
    runs: Runs, tables: Sequence[Table], files: list[str], out: Path, details: Sequence[str]
) -> list[str]:
    """Write significance, plots and page; return what there is to say of them."""
    # Only now, since drawing takes longer to import than tables take.
    from so_clip.report import page, plots

    comparisons, remarks = compare(runs)
    frames = {}
    if len(comparisons):
        pairs = summary(comparisons)
        frames["Significance"] = pairs
        files.append(_write_significance(comparisons, pairs, out / FOLDER))
    drawn = plots.write(runs.frame, out)
    notes = [*(f"Left out: {reason}" for reason in runs.skipped), *remarks]
    page.write(runs, tables, out, drawn, details=details, notes=notes, frames=frames)
    return remarks


def _write_significance(comparisons: pd.DataFrame, pairs: pd.DataFrame, folder: Path) -> str:
    """Write every comparison as CSV and the pairs for people; return the LaTeX file's name."""
    name = "significance"
    texts = formats.readable(pairs)
    columns = 4  # backbone, shots and two methods
    atomic.write_text(folder / f"{name}.csv", comparisons.to_csv(index=False))
    for ending, text in (
        ("md", formats.frame_to_markdown(texts, SIGNIFICANCE, columns)),
        ("tex", latex.HEADER + latex.frame_to_latex(texts, SIGNIFICANCE, name, columns)),
        ("html", formats.frame_to_html(texts, SIGNIFICANCE, name)),
    ):
        atomic.write_text(folder / f"{name}.{ending}", text)
    return f"{name}.tex"


def _tell(runs: Runs, tables: Sequence[Table], out: Path, remarks: Sequence[str]) -> None:
    """Print what was made, what is missing and how to fill it; on stderr what is amiss."""
    for table in tables:
        if table.commands:
            print(f"{table.caption}:")
            for note in table.notes:
                print(f"  {note}")
            print("To fill it:", *table.commands, sep="\n  ", end="\n\n")
    page = out / "index.html"
    print(f"{len(runs.frame)} runs; {page if page.is_file() else 'tables'} in {out}")
    for remark in remarks:
        print(f"so_clip.report: {remark}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
