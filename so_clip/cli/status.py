"""`python -m so_clip status`: which runs are done, running, failed or missing."""

from typing import Annotated

import typer

from so_clip.cli.arguments import ResultsDir
from so_clip.errors import RunFailed

HELP = """Show which runs are done, running, failed or missing.

On a terminal the table is updated until no run is active, or until Ctrl-C.

\b
States:
  done         metrics.json exists
  running      a process holds the run folder
  failed       error.json has the reason
  interrupted  the process ended; the same command resumes from the last checkpoint
  waiting      a job of a running sweep that has not started
  missing      a job of a sweep that has no run

A run that is repeated is running or waiting.

Exit codes: 0, 1 if a run failed or its files are damaged, 2 if the folder does not exist."""


def main(
    results_dir: ResultsDir,
    once: Annotated[bool, typer.Option("--once", help="Print the table once.")] = False,
    list_all: Annotated[
        bool, typer.Option("--all", help="List all runs, not only the first 20 of each state.")
    ] = False,
) -> None:
    """Show the states of the runs; see HELP."""
    from rich.console import Console

    from so_clip.status.runs import FAILED
    from so_clip.status.screen import SHOWN, report
    from so_clip.status.watcher import look, print_whole, watch

    console = Console(highlight=False)
    if console.is_terminal and not console.is_dumb_terminal and not once:
        watch(results_dir, console)
    view = look(results_dir)
    print_whole(report(view, None if list_all else SHOWN), console)
    failed = view.counts[FAILED]
    if failed:
        raise RunFailed(f"{failed} run{'s' if failed > 1 else ''} failed.")
