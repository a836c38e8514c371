"""`python -m so_clip report`: runs as tables, plots and one page."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from so_clip.cli.arguments import OUT, ResultsDir, out_option

if TYPE_CHECKING:
    from so_clip.report.read import Runs
    from so_clip.report.tables import Table

FOLDER, ALL, PAGE = "tables", "all.tex", "index.html"
HELP = """Write runs as tables, plots and one page.

\b
The folder gets:
  index.html  one page that needs no network; it is written last
  tables/     each table as tidy CSV, Markdown, LaTeX and an HTML fragment; all.tex has all
  plots/      the plots

Folders without a usable run are left out and named on stderr. Missing runs are printed.

Exit codes: 0 done, also if unusable runs are left out; 2 no run can be used, or the folder cannot
be written; 130 interrupted. Plots and page need: pip install 'so-clip[report]'."""


def main(
    results_dir: ResultsDir,
    out: Annotated[Path | None, out_option("the report", "report")] = None,
    tables_only: Annotated[
        bool, typer.Option("--tables-only", help="Write no significance, plots or page.")
    ] = False,
    details: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN",
            help="A run folder whose confusion matrix, reliability, classes, curve and mistakes "
            "must be on the page. May be repeated. The other runs with these details are the best "
            "and the newest.",
        ),
    ] = None,
    flops: Annotated[
        bool,
        typer.Option(
            "--flops",
            help="Forecast the training FLOPs: some seconds for each kind of run, the first time.",
        ),
    ] = False,
) -> None:
    """Write the report; see HELP."""
    from so_clip.report.extras import require_report_extra
    from so_clip.report.formats import latex
    from so_clip.report.formats.files import write_tables
    from so_clip.report.missing import add_missing
    from so_clip.report.published import add_published
    from so_clip.report.read import read_runs
    from so_clip.report.tables import make_tables
    from so_clip.system import atomic

    require_report_extra()
    out = out or results_dir / "report"
    runs = read_runs(results_dir)
    remarks = [f"left out: {reason}" for reason in runs.skipped]
    if flops:
        from so_clip.forecast.finished_runs import forecast_flops

        runs, unknown = forecast_flops(runs)
        remarks += unknown
    tables, missing = add_missing(make_tables(runs), runs)
    tables = add_published(tables, runs)
    with atomic.output_option(OUT), _reported_if_cut_short(out / PAGE):
        names = write_tables(tables, out / FOLDER)
        atomic.write_text(out / FOLDER / ALL, latex.document(names))
        if not tables_only:
            remarks += _write_page(runs, tables, names, out, details or [])
    _print_summary(runs, missing, out, tables_only, remarks)


def _write_page(
    runs: "Runs", tables: Sequence["Table"], names: list[str], out: Path, details: Sequence[str]
) -> list[str]:
    """Write significance, plots and last the page; return remarks for the user."""
    from so_clip.report.formats import latex
    from so_clip.report.formats.files import SIGNIFICANCE, write_significance
    from so_clip.report.page import write as page
    from so_clip.report.page.data import Frame
    from so_clip.report.plots import write as plots
    from so_clip.report.significance import compare, summary
    from so_clip.system import atomic

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
def _reported_if_cut_short(page: Path) -> Iterator[None]:
    """Print whether there is an older page, if the report ends before its page is written."""
    try:
        yield
    except BaseException:
        state = "is that of an earlier report" if page.is_file() else "was not written"
        if page.parent.is_dir():
            print(f"so_clip: cut short: {page} {state}.", file=sys.stderr)
        raise


def _print_summary(
    runs: "Runs", missing: Sequence[str], out: Path, tables_only: bool, remarks: Sequence[str]
) -> None:
    """Print the missing runs with their commands, and the place; problems go to stderr."""
    for line in missing:
        print(line)
    page = out / PAGE
    print(f"{runs.counted}; {'tables' if tables_only else page} in {out}")
    if tables_only and page.is_file():
        print(f"{page} is that of an earlier report.")
    for remark in remarks:
        print(f"so_clip: {remark}", file=sys.stderr)
