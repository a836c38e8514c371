"""The table of states for a terminal, by the library rich; in a pipe the same as plain lines."""

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from so_clip.status.runs import (
    DONE,
    FAILED,
    INTERRUPTED,
    MISSING,
    RUNNING,
    STATES,
    WAITING,
    Run,
)
from so_clip.status.sweeps import Sweep

COLOURS = {
    DONE: "green",
    RUNNING: "cyan",
    WAITING: "blue",
    FAILED: "red",
    INTERRUPTED: "yellow",
    MISSING: "magenta",
}
# What asks for attention comes first.
_ORDER = (RUNNING, FAILED, INTERRUPTED, MISSING, WAITING, DONE)
# A line of the table, and of all lists unless `--all` is given.
_REMARK_CHARACTERS = 300
SHOWN = 20
# Of so many jobs a sweep's own command is shorter than theirs.
_SINGLE_COMMANDS = 3
_FIGURES = ("step", "loss", "time left", "accuracy")
_HINTS = {
    FAILED: "To repeat what failed:",
    INTERRUPTED: "To go on where runs were interrupted:",
    MISSING: "To start what is missing:",
}


@dataclass(frozen=True)
class View:
    """What was found at one moment. `notes` say what could not be read."""

    results_dir: Path
    runs: Sequence[Run]
    sweeps: Sequence[tuple[Sweep, Sequence[Run]]]
    notes: Sequence[str]

    @property
    def counts(self) -> Counter[str]:
        """How many runs are in each state."""
        return Counter(run.state for run in self.runs)

    @property
    def is_alive(self) -> bool:
        """Whether anything runs, or is between two runs of a sweep."""
        return bool(self.counts[RUNNING]) or any(sweep.is_alive for sweep, _ in self.sweeps)


def report(view: View, shown: int | None = SHOWN) -> Group:
    """Return all there is to say; of each list the first `shown` entries, None: every one."""
    parts: list[RenderableType] = [_totals(view)]
    if view.sweeps:
        parts += [Text(), _sweeps_table(view.sweeps[::-1], shown)]
    if view.runs:
        parts += [Text(), _runs_table(view.runs, lambda state: shown)]
    for state, hint in _HINTS.items():
        commands = list(_commands(view, state))
        if commands:
            parts += [Text(), Text(hint), *_listed([Text(f"  {each}") for each in commands], shown)]
    if view.notes:
        parts += [Text(), *_listed([_plain(f"left out: {note}") for note in view.notes], shown)]
    return Group(*parts)


def dashboard(view: View, height: int) -> Group:
    """Return what fits into so many lines: totals, sweeps at work, the runs that matter most."""
    parts: list[RenderableType] = [_totals(view)]
    at_work = [each for each in view.sweeps[::-1] if each[0].is_alive][:3]
    if at_work:
        parts += [Text(), _sweeps_table(at_work, None, one_line=True)]
    # A blank line, the header, a line for what is not shown, and the cursor's.
    room = max(3, height - 1 - (len(at_work) + 2 if at_work else 0) - 4)
    counts = view.counts
    shares = dict.fromkeys(STATES, 0)
    for state in _ORDER:
        # The last that were done are news, so that they always have some lines.
        kept = min(counts[DONE], room // 4) if state != DONE else 0
        shares[state] = min(counts[state], max(0, room - kept - sum(shares.values())))
    hidden = len(view.runs) - sum(shares.values())
    parts += [Text(), _runs_table(view.runs, shares.__getitem__, one_line=True, counted=False)]
    if hidden:
        parts.append(Text(f"… and {hidden} more", style="dim"))
    return Group(*parts)


def _totals(view: View) -> Text:
    counts, text = view.counts, _plain(f"{view.results_dir}: ")
    if not view.runs:
        return text.append("no runs yet")
    text.append(f"{len(view.runs)} run{'s' if len(view.runs) > 1 else ''}: ")
    parts = [Text(f"{counts[s]} {s}", COLOURS[s]) for s in STATES if counts[s] or s == DONE]
    return text.append_text(Text(", ").join(parts))


def _sweeps_table(
    sweeps: Sequence[tuple[Sweep, Sequence[Run]]], shown: int | None, one_line: bool = False
) -> Table:
    table = _table("sweep", "jobs", *STATES, "command")
    for sweep, runs in sweeps[:shown]:
        counts = Counter(run.state for run in runs)
        cells = [
            Text(str(counts[state]), COLOURS[state] if counts[state] else "dim") for state in STATES
        ]
        name = Text(f"{sweep.folder.name} (at work)" if sweep.is_alive else sweep.folder.name)
        texts = [name, Text(str(len(runs))), *cells, _command(sweep.command)]
        table.add_row(*(_shortened(texts) if one_line else texts))
    return table


def _runs_table(
    runs: Sequence[Run],
    shown: Callable[[str], int | None],
    one_line: bool = False,
    counted: bool = True,
) -> Table:
    """Return the table of runs, of each state as many as `shown` says, the rest counted."""
    table = _table("state", "run", *_FIGURES, "remark")
    for state in _ORDER:
        some = [run for run in runs if run.state == state]
        # Running ones stay where they are; of the others the latest come first.
        some.sort(key=lambda run: (0.0 if state == RUNNING else -run.changed_at, run.name))
        limit = shown(state)
        for run in some[:limit]:
            cells = _cells(run)
            cells = _shortened(cells) if one_line else cells
            table.add_row(Text(state, COLOURS[state]), *cells)
        if counted and limit is not None and len(some) > limit:
            table.add_row(
                Text(state, COLOURS[state]),
                Text(f"… and {len(some) - limit} more (--all lists them)"),
            )
    return table


def _cells(run: Run) -> list[Text]:
    step = "" if run.step is None else str(run.step)
    if step and run.max_steps is not None and run.state != DONE:
        step = f"{step}/{run.max_steps}"
    remark = run.remark
    if len(remark) > _REMARK_CHARACTERS:
        remark = f"{remark[:_REMARK_CHARACTERS]}…"
    return [
        _plain(run.name),
        Text(step),
        Text("" if run.loss is None else f"{run.loss:.4f}"),
        Text("" if run.seconds_left is None else duration(run.seconds_left)),
        Text("" if run.accuracy_percent is None else f"{run.accuracy_percent:.2f} %"),
        _plain(remark),
    ]


def duration(seconds: float) -> str:
    """Return seconds for people: 40 s, 12 min, 1 h 05 min, 2 d 3 h."""
    minutes = round(seconds / 60)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = minutes // 60
    return f"{hours // 24} d {hours % 24} h"


def _commands(view: View, state: str) -> Iterable[Text]:
    """Yield what to type for the runs in a state, each once; many of one sweep by its command."""
    left = {(run.name, run.overrides): run for run in view.runs if run.state == state}
    if state != FAILED:
        for sweep, runs in reversed(view.sweeps):
            of_sweep = {(run.name, run.overrides) for run in runs} & left.keys()
            if len(of_sweep) > _SINGLE_COMMANDS and sweep.command and not sweep.is_alive:
                left = {each: run for each, run in left.items() if each not in of_sweep}
                yield _command(sweep.command)
    for run in left.values():
        if run.overrides is not None:
            yield _command(run.overrides)


def _command(arguments: Sequence[str]) -> Text:
    """Return what to type; without `force`, which would do again what is done."""
    arguments = [each for each in arguments if each.partition("=")[0] != "force"]
    return _plain(shlex.join(["python", "-m", "so_clip", *arguments]))


def _listed(lines: list[Text], shown: int | None) -> list[Text]:
    if shown is None or len(lines) <= shown:
        return lines
    return [*lines[:shown], Text(f"  … and {len(lines) - shown} more (--all lists them)")]


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column in (*STATES, "jobs", *_FIGURES)
        table.add_column(
            column,
            justify="right" if right else "left",
            overflow="fold",
            no_wrap=right or column == "state",  # where it is narrow, texts give way, not figures
        )
    return table


def _shortened(cells: list[Text]) -> list[Text]:
    """Let cells end in … where their column is too narrow."""
    for cell in cells:
        cell.no_wrap, cell.overflow = True, "ellipsis"
    return cells


def _plain(text: str) -> Text:
    """Return a text from a file as it may be shown: on one line, and without control codes."""
    return Text("".join(letter if letter.isprintable() else " " for letter in text))
