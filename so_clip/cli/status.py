"""`python -m so_clip status RESULTS_DIR`: which runs are done, running, failed, missing."""

import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live

from so_clip.cli.arguments import results_parser
from so_clip.cli.guard import guarded
from so_clip.errors import RunFailed
from so_clip.status.runs import FAILED, RunFolders
from so_clip.status.screen import SHOWN, View, dashboard, report
from so_clip.status.sweeps import Ledger, SweepFolders

REFRESH_SECONDS = 2.0
# Of the time at most a fifth goes into looking, however many runs there are.
_REST_PER_LOOK = 4
# Lines in a pipe are as long as what they say.
_PIPE_COLUMNS = 10_000
EPILOG = """\
On a terminal the table is kept up to date until nothing runs any more, or until Ctrl-C. States:
done (metrics.json is there), running (a process holds its folder), failed (error.json says why),
interrupted (a run that ended without a word: the same command goes on from its last checkpoint),
waiting (a job of a sweep at work, which will come to it), missing (a job of a sweep that has no
run). A run that is done again is running, or waiting. The exit code is 0, 1 if a run failed or its
files are damaged, or 2 where there is no such folder."""


def main() -> int:
    """Run the command line of `python -m so_clip status`; return the process's exit code."""
    return guarded(_main)


def _main(arguments: list[str]) -> None:
    parser = results_parser("so_clip status", __doc__, epilog=EPILOG)
    parser.add_argument("--once", action="store_true", help="print the table once")
    parser.add_argument(
        "--all", action="store_true", help=f"list every run, not the first {SHOWN} of each state"
    )
    options = parser.parse_args(arguments)
    console = Console(highlight=False)
    watcher = Watcher(options.results_dir)
    if console.is_terminal and not console.is_dumb_terminal and not options.once:
        watch(watcher, console)
    view = watcher.look()
    _print(report(view, None if options.all else SHOWN), console)
    failed = view.counts[FAILED]
    if failed:
        raise RunFailed(f"{failed} run{'s' if failed > 1 else ''} failed.")


def _print(whole: Group, console: Console) -> None:
    """Print everything; in a pipe, lines are not broken and end where their text does."""
    if console.is_terminal:
        # Commands are not broken where they are too long, so that they can be copied.
        console.print(whole, soft_wrap=True)
        return
    wide = Console(highlight=False, width=_PIPE_COLUMNS)
    with wide.capture() as captured:
        wide.print(whole)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


@dataclass
class Watcher:
    """Looks at a folder of results again and again, and reads only what has changed."""

    results_dir: Path
    _runs: RunFolders = field(init=False)
    _sweeps: SweepFolders = field(init=False)
    _ledger: Ledger = field(init=False, default_factory=Ledger)

    def __post_init__(self) -> None:
        self._runs = RunFolders(self.results_dir)
        self._sweeps = SweepFolders(self.results_dir)

    def look(self) -> View:
        """Return what is there now.

        Raises:
            InputError: there is no such folder.
        """
        # Sweeps first: a job that says it is running must not be older than its run.
        sweeps = self._sweeps.read()
        runs, per_sweep = self._ledger.settle(self._runs.read(), sweeps)
        notes = [*self._sweeps.unreadable, *self._runs.unreadable]
        return View(self.results_dir, runs, per_sweep, notes)


def watch(watcher: Watcher, console: Console) -> None:
    """Keep the table on the terminal up to date until nothing runs any more, or until Ctrl-C."""
    with (
        suppress(KeyboardInterrupt),
        Live(console=console, auto_refresh=False, transient=True) as live,
    ):
        while True:
            began = time.monotonic()
            view = watcher.look()
            live.update(dashboard(view, console.height), refresh=True)
            if not view.is_alive:
                return
            time.sleep(max(REFRESH_SECONDS, _REST_PER_LOOK * (time.monotonic() - began)))


if __name__ == "__main__":
    sys.exit(main())
