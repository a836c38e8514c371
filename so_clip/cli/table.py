"""`python -m so_clip table`: print the report's tables of accuracy and memory."""

from pathlib import Path
from typing import Annotated

from so_clip.cli.arguments import OUT, ResultsDir, out_option
from so_clip.errors import say, show

SHOWN = (
    "accuracy",
    "base_accuracy",
    "new_accuracy",
    "harmonic_mean",
    "transfer",
    "evaluation",
    "tasks",
    "memory",
)


def main(
    results_dir: ResultsDir,
    out: Annotated[Path | None, out_option("the tables", "tables")] = None,
) -> None:
    """Print the tables of accuracy and memory, and write them as tidy CSV and Markdown.

    `python -m so_clip report` adds LaTeX, HTML, missing runs, significance, plots and a page.

    Exit codes: 0 done, also if unusable runs are left out; 2 no run can be used, or the folder
    cannot be written.
    """
    from so_clip.report.formats.files import write_tables
    from so_clip.report.formats.screen import show_tables
    from so_clip.report.read import read_runs
    from so_clip.report.tables import make_tables
    from so_clip.system import atomic

    runs = read_runs(results_dir)
    out = out or results_dir / "tables"
    tables = [table for table in make_tables(runs) if table.measure.name in SHOWN]
    with atomic.output_option(OUT):
        write_tables(tables, out, endings=("md",))
    show_tables(tables)
    show(f"{runs.counted}; tables in {out}")
    for reason in runs.skipped:
        say(f"left out: {reason}")
