"""`python -m so_clip.report RESULTS_DIR -o OUT`: runs as tables, plots and one page."""

import sys
from collections.abc import Sequence
from pathlib import Path

from so_clip import atomic
from so_clip.__main__ import guarded
from so_clip.arguments import OUT, results_parser
from so_clip.report import latex
from so_clip.report.files import write_significance, write_tables
from so_clip.report.flops import forecast_flops
from so_clip.report.missing import add_missing
from so_clip.report.published import add_published
from so_clip.report.read import Runs, read_runs
from so_clip.report.significance import compare, summary
from so_clip.report.tables import Table, make_tables

FOLDER = "tables"
EPILOG = """\
OUT gets index.html (one page that needs no network), tables/ (each as tidy CSV, Markdown, LaTeX and
an HTML fragment; all.tex shows them all) and plots/. Folders that hold no usable run are named on
stderr, one a line, and left out. What a table lacks is said below it, with the command that fills
it."""


def main() -> int:
    """Run the command line; return the process's exit code."""
    return guarded(_main)


def _main(arguments: list[str]) -> None:
    out_help = "folder for the report (default: RESULTS_DIR/report)"
    parser = results_parser("so_clip.report", __doc__, out_help, EPILOG)
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
    with atomic.placed_by(OUT):
        names = write_tables(tables, out / FOLDER)
        if not options.tables_only:
            remarks += _write_the_rest(runs, tables, names, out, options.details)
        atomic.write_text(out / FOLDER / "all.tex", latex.document(names))
    _tell(runs, tables, out, remarks)


def _write_the_rest(
    runs: Runs, tables: Sequence[Table], names: list[str], out: Path, details: Sequence[str]
) -> list[str]:
    """Write significance, plots and page; return what there is to say of them."""
    # Only now, since drawing takes longer to import than tables take.
    from so_clip.report import page, plots

    comparisons, remarks = compare(runs)
    frames = {}
    if len(comparisons):
        pairs = summary(comparisons)
        frames["Significance"] = pairs
        names.append(write_significance(comparisons, pairs, out / FOLDER))
    drawn = plots.write(runs.frame, out)
    notes = [*(f"Left out: {reason}" for reason in runs.skipped), *remarks]
    page.write(runs, tables, out, drawn, details=details, notes=notes, frames=frames)
    return remarks


def _tell(runs: Runs, tables: Sequence[Table], out: Path, remarks: Sequence[str]) -> None:
    """Print what was made, what is missing and how to fill it; on stderr what is amiss."""
    for table in tables:
        if table.commands:
            print(f"{table.caption}:")
            for note in table.notes:
                print(f"  {note}")
            print("To fill it:", *table.commands, sep="\n  ", end="\n\n")
    page = out / "index.html"
    print(f"{runs.counted}; {page if page.is_file() else 'tables'} in {out}")
    for remark in remarks:
        print(f"so_clip.report: {remark}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
