"""The table of states for a terminal, with the library rich; in a pipe the same as plain lines."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from so_clip.results.progress import duration
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

# States in the order of the table, with their colours.
COLOURS = {
    RUNNING: "cyan",
    FAILED: "red",
    INTERRUPTED: "yellow",
    DONE: "green",
    MISSING: "magenta",
    WAITING: "blue",
}
_REMARK_CHARACTERS = 300
# The length of each list without `--all`.
SHOWN = 20
_NUMBERS = ("step", "loss", "time left", "accuracy")


@dataclass(frozen=True)
class View:
    """All runs and sweeps at one moment. `notes` name what could not be read."""

    results_dir: Path
    runs: Sequence[Run]
    sweeps: Sequence[tuple[Sweep, Sequence[Run]]]
    notes: Sequence[str]

    @property
    def counts(self) -> Counter[str]:
        """The number of runs in each state."""
        return Counter(run.state for run in self.runs)

    @property
    def is_running(self) -> bool:
        """Whether a run or a sweep is running."""
        return bool(self.counts[RUNNING]) or any(sweep.is_running for sweep, _ in self.sweeps)


def report(view: View, shown: int | None = SHOWN) -> Group:
    """Return the whole report; `shown` limits each list, and None does not."""
    parts: list[RenderableType] = [_totals(view)]
    if view.sweeps:
        parts += [Text(), _sweeps_table(view.sweeps[::-1][:shown])]
    if view.runs:
        table = _table("state", "run", *_NUMBERS, "remark")
        for state, colour in COLOURS.items():
            runs = [run for run in _sorted(view.runs) if run.state == state]
            for run in runs[:shown]:
                table.add_row(*_cells(run))
            if shown is not None and len(runs) > shown:
                table.add_row(Text(state, colour), _hidden(len(runs) - shown))
        parts += [Text(), table]
    commands = _continuing_commands(view)
    if commands:
        parts += [Text(), Text("To continue a sweep:"), *_limited(commands, shown)]
    if view.notes:
        parts += [Text(), *_limited([f"left out: {note}" for note in view.notes], shown)]
    return Group(*parts)


def dashboard(view: View, height: int) -> Group:
    """Return the totals, the running sweeps and the first runs, in at most `height` lines."""
    parts: list[RenderableType] = [_totals(view)]
    running = [entry for entry in view.sweeps[::-1] if entry[0].is_running][:3]
    if running:
        parts += [Text(), _sweeps_table(running, one_line=True)]
    # Five lines are for the totals, an empty line, the header, the hidden runs and the cursor.
    room = max(3, height - 5 - (len(running) + 2 if running else 0))
    table = _table("state", "run", *_NUMBERS, "remark")
    for run in _sorted(view.runs)[:room]:
        table.add_row(*_one_line(_cells(run)))
    parts += [Text(), table]
    if len(view.runs) > room:
        parts.append(Text(f"… and {len(view.runs) - room} more", style="dim"))
    return Group(*parts)


def _totals(view: View) -> Text:
    counts, text = view.counts, _plain(f"{view.results_dir}: ")
    if not view.runs:
        return text.append("no runs yet")
    text.append(f"{len(view.runs)} run{'s' if len(view.runs) > 1 else ''}: ")
    parts = [Text(f"{counts[s]} {s}", COLOURS[s]) for s in STATES if counts[s] or s == DONE]
    return text.append_text(Text(", ").join(parts))


def _sweeps_table(sweeps: Sequence[tuple[Sweep, Sequence[Run]]], one_line: bool = False) -> Table:
    table = _table("sweep", "jobs", *STATES, "command")
    for sweep, runs in sweeps:
        counts = Counter(run.state for run in runs)
        name = f"{sweep.name} (running)" if sweep.is_running else sweep.name
        cells = [Text(name), Text(str(len(runs)))]
        cells += [
            Text(str(counts[state]), COLOURS[state] if counts[state] else "dim") for state in STATES
        ]
        cells.append(_plain(sweep.command_line))
        table.add_row(*(_one_line(cells) if one_line else cells))
    return table


def _continuing_commands(view: View) -> list[str]:
    """Return the commands of ended sweeps with unfinished jobs, latest first, without repeats."""
    return list(
        dict.fromkeys(
            f"  {sweep.command_line}"
            for sweep, runs in reversed(view.sweeps)
            if sweep.command and not sweep.is_running and any(run.state != DONE for run in runs)
        )
    )


def _sorted(runs: Sequence[Run]) -> list[Run]:
    """Return the runs by state. Running ones keep their places; others are sorted latest first."""
    order = list(COLOURS)

    def place(run: Run) -> tuple[int, float, str]:
        return order.index(run.state), 0 if run.state == RUNNING else -run.changed_at, run.name

    return sorted(runs, key=place)


def _cells(run: Run) -> list[Text]:
    step = "" if run.step is None else str(run.step)
    if step and run.max_steps is not None and run.state != DONE:
        step = f"{step}/{run.max_steps}"
    remark = run.remark
    if len(remark) > _REMARK_CHARACTERS:
        remark = f"{remark[:_REMARK_CHARACTERS]}…"
    return [
        Text(run.state, COLOURS[run.state]),
        _plain(run.name),
        Text(step),
        Text("" if run.loss is None else f"{run.loss:.4f}"),
        Text("" if run.seconds_left is None else duration(run.seconds_left)),
        Text("" if run.accuracy_percent is None else f"{run.accuracy_percent:.2f} %"),
        _plain(remark),
    ]


def _limited(lines: Sequence[str], shown: int | None) -> list[Text]:
    texts = [_plain(line) for line in lines[:shown]]
    return texts if len(texts) == len(lines) else [*texts, _hidden(len(lines) - len(texts))]


def _hidden(count: int) -> Text:
    return Text(f"… and {count} more (--all lists them)")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        is_number = column in (*STATES, "jobs", *_NUMBERS)
        table.add_column(
            column,
            justify="right" if is_number else "left",
            overflow="fold",
            no_wrap=is_number or column == "state",  # on a narrow terminal, texts are folded first
        )
    return table


def _one_line(cells: list[Text]) -> list[Text]:
    """Cut cells that are wider than their column, with … at the end."""
    for cell in cells:
        cell.no_wrap, cell.overflow = True, "ellipsis"
    return cells


def _plain(text: str) -> Text:
    """Return a text from a file on one line, without control codes."""
    return Text("".join(letter if letter.isprintable() else " " for letter in text))
