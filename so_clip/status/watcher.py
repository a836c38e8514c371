"""Reads the states of all runs repeatedly, and shows them on a terminal or in a pipe."""

import time
from contextlib import suppress
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live

from so_clip.errors import show
from so_clip.status.runs import read_states
from so_clip.status.screen import View, dashboard
from so_clip.status.sweeps import match_jobs, read_sweeps

REFRESH_SECONDS = 2.0
# The pause after a look is this many times as long as the look, so looks take a fifth of the time.
_REST_PER_LOOK = 4
# Lines in a pipe are never broken.
_PIPE_COLUMNS = 10_000


def look(results_dir: Path) -> View:
    """Return the present states of all runs and sweeps.

    Raises:
        InputError: there is no such folder.
    """
    notes: list[str] = []
    # Sweeps come first: a job's record that says "running" must not be older than its run.
    sweeps = read_sweeps(results_dir, notes)
    runs, matched = match_jobs(read_states(results_dir, notes), sweeps)
    return View(results_dir, runs, matched, notes)


def watch(results_dir: Path, console: Console) -> None:
    """Update the table on the terminal until no run is active, or until Ctrl-C."""
    with (
        suppress(KeyboardInterrupt),
        Live(console=console, auto_refresh=False, transient=True) as live,
    ):
        while True:
            began = time.monotonic()
            view = look(results_dir)
            live.update(dashboard(view, console.height), refresh=True)
            if not view.is_running:
                return
            time.sleep(max(REFRESH_SECONDS, _REST_PER_LOOK * (time.monotonic() - began)))


def print_whole(whole: Group, console: Console) -> None:
    """Print everything. In a pipe, lines are not broken and have no trailing blanks."""
    if console.is_terminal:
        # Long commands are not broken, so they can be copied.
        console.print(whole, soft_wrap=True)
        return
    wide = Console(highlight=False, width=_PIPE_COLUMNS)
    with wide.capture() as captured:
        wide.print(whole)
    show("\n".join(line.rstrip() for line in captured.get().splitlines()))
