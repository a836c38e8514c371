"""`python -m so_clip report RESULTS_DIR -o OUT`: runs as tables, plots and one page."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from so_clip.cli.arguments import OUT, results_parser
from so_clip.cli.guard import guarded
from so_clip.forecast.finished_runs import forecast_flops
from so_clip.report.formats import latex
from so_clip.report.formats.files import SIGNIFICANCE, write_significance, write_tables
from so_clip.report.missing import add_missing
from so_clip.report.published import add_published
from so_clip.report.read import Runs, read_runs
from so_clip.report.significance import compare, summary
from so_clip.report.tables import Table, make_tables
from so_clip.system import atomic

FOLDER, ALL, PAGE = "tables", "all.tex", "index.html"
EPILOG = """\
OUT gets index.html (one page that needs no network), tables/ (each as tidy CSV, Markdown, LaTeX and
an HTML fragment; all.tex shows them all) and plots/. Folders that hold no usable run are named on
stderr, one a line, and left out. What a table lacks is said below it, with the command that fills
it. The page is written last: where a report is cut short, there is none, or that of an earlier one.
Exit codes: 0 done, also where runs were left out; 2 no run can be used, or OUT cannot be written;
130 interrupted."""


def main() -> int:
    """Run the command line; return the process's exit code."""
    return guarded(_main)


def _main(arguments: list[str]) -> None:
    options = _parse(arguments)
    out = options.out or options.results_dir / "report"
    runs = read_runs(options.results_dir)
    remarks = [f"left out: {reason}" for reason in runs.skipped]
    if options.flops:
        runs, unknown = forecast_flops(runs)
        remarks += unknown
    tables = add_published(add_missing(make_tables(runs), runs), runs)
    with atomic.placed_by(OUT), _said_if_cut_short(out / PAGE):
        names = write_tables(tables, out / FOLDER)
        atomic.write_text(out / FOLDER / ALL, latex.document(names))
        if not options.tables_only:
            remarks += _write_the_rest(runs, tables, names, out, options.details)
    _tell(runs, tables, out, options.tables_only, remarks)


def _parse(arguments: list[str]) -> argparse.Namespace:
    out_help = "folder for the report (default: RESULTS_DIR/report)"
    parser = results_parser("so_clip report", __doc__, out_help, EPILOG)
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
    return parser.parse_args(arguments)


def _write_the_rest(
    runs: Runs, tables: Sequence[Table], names: list[str], out: Path, details: Sequence[str]
) -> list[str]:
    """Write significance, plots and, last of all, the page; return what there is to say of them."""
    # Only now, since drawing takes longer to import than tables take.
    from so_clip.report.page import write as page
    from so_clip.report.page.data import Frame
    from so_clip.report.plots import write as plots

    comparisons, remarks = compare(runs)
    frames = []
    if len(comparisons):
        pairs = summary(comparisons)
        frames.append(Frame("Significance", SIGNIFICANCE, pairs))
        names = [*names, write_significance(comparisons, pairs, out / FOLDER)]
        atomic.write_text(out / FOLDER / ALL, latex.document(names))
    drawn = plots.write(runs.frame, out)
    notes = [*(f"Left out: {reason}" for reason in runs.skipped), *remarks]
    page.write(runs, tables, out, drawn, details=details, notes=notes, frames=frames)
    return remarks


@contextmanager
def _said_if_cut_short(page: Path) -> Iterator[None]:
    """Say of a page that is not that of this report, when this report ends before its time."""
    try:
        yield
    except BaseException:
        state = "is that of an earlier report" if page.is_file() else "was not written"
        if page.parent.is_dir():
            print(f"so_clip: cut short: {page} {state}.", file=sys.stderr)
        raise


def _tell(
    runs: Runs, tables: Sequence[Table], out: Path, tables_only: bool, remarks: Sequence[str]
) -> None:
    """Print what was made, what is missing and how to fill it; on stderr what is amiss."""
    for table in tables:
        if table.commands:
            print(f"{table.caption}:")
            for note in table.notes:
                print(f"  {note}")
            print("To fill it:", *table.commands, sep="\n  ", end="\n\n")
    page = out / PAGE
    print(f"{runs.counted}; {'tables' if tables_only else page} in {out}")
    if tables_only and page.is_file():
        print(f"{page} is that of an earlier report.")
    for remark in remarks:
        print(f"so_clip: {remark}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
