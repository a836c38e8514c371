"""The table of states for a terminal, with the library rich; in a pipe the same as plain lines."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from so_clip import escape
from so_clip.results.job_names import differing, options_of, short_names
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
_NUMBER_COLUMNS = (*STATES, "jobs", *_NUMBERS)
# Further options in which runs differ share a column.
_OPTION_COLUMNS = 6
# On a narrow terminal a name keeps at least its last characters, the fingerprint, behind an "…".
_NAME_CHARACTERS = 13
# The width that a long remark needs. It is folded before the names are cut.
_REMARK_WIDTH = 30


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
        options = _Options(view.runs)
        rows = []
        for state, colour in COLOURS.items():
            runs = [run for run in _sorted(view.runs) if run.state == state]
            rows += [_cells(run, options) for run in runs[:shown]]
            if shown is not None and len(runs) > shown:
                rows.append([Text(state, colour), _hidden(len(runs) - shown)])
        parts += [Text(), _RunsTable(options, rows)]
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
        parts += [Text(), _sweeps_table(running)]
    # Five lines are for the totals, an empty line, the header, the hidden runs and the cursor.
    room = max(3, height - 5 - (len(running) + 2 if running else 0))
    options = _Options(view.runs)
    rows = [_one_line(_cells(run, options)) for run in _sorted(view.runs)[:room]]
    parts += [Text(), _RunsTable(options, rows)]
    if len(view.runs) > room:
        parts.append(Text(f"… and {len(view.runs) - room} more", style="dim"))
    return Group(*parts)


def _totals(view: View) -> Text:
    counts, text = view.counts, Text(f"{escape.line(str(view.results_dir))}: ")
    if not view.runs:
        return text.append("no runs yet")
    text.append(f"{len(view.runs)} run{'s' if len(view.runs) > 1 else ''}: ")
    parts = [Text(f"{counts[s]} {s}", COLOURS[s]) for s in STATES if counts[s] or s == DONE]
    return text.append_text(Text(", ").join(parts))


def _sweeps_table(sweeps: Sequence[tuple[Sweep, Sequence[Run]]]) -> Table:
    """Return a line for each sweep. The command comes last, and is cut on a narrow terminal."""
    found = Counter(run.state for _, runs in sweeps for run in runs)
    states = [state for state in STATES if found[state] or state == DONE]
    times = ["time left"] if any(sweep.seconds_left is not None for sweep, _ in sweeps) else []
    table = _table("sweep", "jobs", *states, *times, "command")
    table.columns[0].no_wrap = True
    for sweep, runs in sweeps:
        counts = Counter(run.state for run in runs)
        name = f"{sweep.name} (running)" if sweep.is_running else sweep.name
        cells = [Text(name), Text(str(len(runs)))]
        cells += [
            Text(str(counts[state]), COLOURS[state] if counts[state] else "dim") for state in states
        ]
        cells += [_seconds(sweep.seconds_left) for _ in times]
        cells += _one_line([_plain(sweep.command_line)])
        table.add_row(*cells)
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


class _Options:
    """The options in which runs differ, as columns.

    Args:
        runs: all runs of the table.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        named = sorted(runs, key=lambda run: run.name)
        known = [options_of(run.overrides) for run in named if run.overrides]
        names = list(short_names(differing(known)).items())
        self._columns, self._more = names[:_OPTION_COLUMNS], names[_OPTION_COLUMNS:]

    @property
    def titles(self) -> list[str]:
        """The titles of the columns."""
        return [short for _, short in self._columns] + ["more options"] * bool(self._more)

    def cells(self, run: Run) -> list[Text]:
        """Return the cells of a run; its missing options are empty."""
        options = options_of(run.overrides or ())
        values = [options.get(name, "") for name, _ in self._columns]
        if self._more:
            given = [f"{short}={options[name]}" for name, short in self._more if name in options]
            values.append(" ".join(given))
        return list(map(_plain, values))


class _RunsTable:
    """The table of runs, without empty columns.

    On a narrow terminal the names of runs lose their beginnings: the columns of options repeat
    these, and the ends are unique.

    Args:
        options: the columns of options.
        rows: the cells of each run. A row of two cells is a remark on a state.
    """

    def __init__(self, options: _Options, rows: Sequence[list[Text]]) -> None:
        self._titles, self._rows = options.titles, rows
        used = {place for row in rows for place, cell in enumerate(row) if cell.plain}
        first = 2 + len(self._titles)
        self._columns = [
            (place, title)
            for place, title in enumerate((*_NUMBERS, "remark"), start=first)
            if place in used
        ]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        remarks = max((row[-1].cell_len for row in self._rows if len(row) > 2), default=0)
        names = max((row[1].cell_len for row in self._rows if len(row) > 2), default=0)
        whole = console.measure(self._table(names), options=options.update(max_width=10**6))
        missing = whole.maximum - max(0, remarks - _REMARK_WIDTH) - options.max_width
        yield self._table(max(_NAME_CHARACTERS, names - max(0, missing)))

    def _table(self, name_characters: int) -> Table:
        table = _table("state", "run", *(title for _, title in self._columns), options=self._titles)
        for row in self._rows:
            head = [row[0], _end_of(row[1], name_characters) if len(row) > 2 else row[1]]
            head += row[2 : 2 + len(self._titles)]
            table.add_row(*head, *(row[place] for place, _ in self._columns if place < len(row)))
        return table


def _end_of(name: Text, characters: int) -> Text:
    return name if name.cell_len <= characters else Text("…") + name[1 - characters :]


def _cells(run: Run, options: _Options) -> list[Text]:
    step = "" if run.step is None else str(run.step)
    if step and run.max_steps is not None and run.state != DONE:
        step = f"{step}/{run.max_steps}"
    remark = run.remark
    if len(remark) > _REMARK_CHARACTERS:
        remark = f"{remark[:_REMARK_CHARACTERS]}…"
    # A job without a folder has the name of its options. The columns have those that matter.
    is_named = run.name != " ".join(run.overrides or ()) or not options.titles
    return [
        Text(run.state, COLOURS[run.state]),
        _plain(run.name if is_named else "–"),
        *options.cells(run),
        Text(step),
        Text("" if run.loss is None else f"{run.loss:.4f}"),
        _seconds(run.seconds_left),
        Text("" if run.accuracy_percent is None else f"{run.accuracy_percent:.2f} %"),
        _plain(remark),
    ]


def _seconds(seconds: float | None) -> Text:
    return Text("" if seconds is None else duration(seconds))


def _limited(lines: Sequence[str], shown: int | None) -> list[Text]:
    texts = [_plain(line) for line in lines[:shown]]
    return texts if len(texts) == len(lines) else [*texts, _hidden(len(lines) - len(texts))]


def _hidden(count: int) -> Text:
    return Text(f"… and {count} more (--all lists them)")


def _table(first: str, second: str, *columns: str, options: Sequence[str] = ()) -> Table:
    """Return an empty table. The columns of options come after the first two columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, no_wrap=first == "state", overflow="fold")
    is_number = second in _NUMBER_COLUMNS
    table.add_column(second, justify="right" if is_number else "left", overflow="fold")
    for option in options:
        table.add_column(_plain(option), overflow="fold")
    for column in columns:
        is_number = column in _NUMBER_COLUMNS
        table.add_column(
            column,
            justify="right" if is_number else "left",
            overflow="fold",
            no_wrap=is_number,  # on a narrow terminal, texts are folded first
        )
    return table


def _one_line(cells: list[Text]) -> list[Text]:
    """Cut cells that are wider than their column, with … at the end."""
    for cell in cells:
        cell.no_wrap, cell.overflow = True, "ellipsis"
    return cells


def _plain(text: str) -> Text:
    """Return a text from a file on one line, without control codes."""
    return Text(escape.line(text))
