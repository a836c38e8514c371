"""`python -m so_clip report`: runs as tables, plots and one page."""

from pathlib import Path
from typing import Annotated

import typer

from so_clip.cli.arguments import OUT, ResultsDir, out_option
from so_clip.errors import say, show

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
            help="Forecast the training FLOPs: some seconds for each kind of run.",
        ),
    ] = False,
) -> None:
    """Write the report; see HELP."""
    from so_clip.forecast.finished_runs import forecast_flops
    from so_clip.report.write import write_report
    from so_clip.system import atomic

    with atomic.output_option(OUT):
        lines, remarks = write_report(
            results_dir,
            out or results_dir / "report",
            tables_only=tables_only,
            details=details or (),
            add_flops=forecast_flops if flops else None,
        )
    show("\n".join(lines))
    for remark in remarks:
        say(remark)
