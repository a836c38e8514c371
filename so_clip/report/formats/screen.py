"""Tables on a terminal, aligned and in colour; in a pipe or a file as Markdown."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from so_clip import escape
from so_clip.errors import show
from so_clip.report.formats.text import MISSING, cell_text, to_markdown
from so_clip.report.measures import Column
from so_clip.report.table import Row, Table

T = TypeVar("T")

# Longer names of methods are folded.
_NAME_CELLS = 40
# Blanks between two columns.
_GAP = 3
_BEST, _PUBLISHED, _HEADING = "bold green", "dim italic", "bold"


def show_tables(tables: Sequence[Table]) -> None:
    """Print tables: for people on a terminal, as Markdown in a pipe or a file."""
    console = Console(highlight=False)
    if not console.is_terminal:
        show("\n".join(map(to_markdown, tables)))
        return
    for table in tables:
        console.print(Text(f"{escape.line(table.caption)}.", _HEADING))
        for columns in _fitting(table, console.width):
            console.print(_grid(table, columns))
        for note in table.notes:
            console.print(Padding(Text(f"- {escape.line(note)}", "dim"), (0, 0, 0, 1)))
        console.print()


def _grid(table: Table, columns: Sequence[Column]) -> Grid:
    """Return a table, or some of its columns, with a line between its blocks."""
    grid = Grid(box=SIMPLE_HEAD, pad_edge=False, header_style=_HEADING)
    grid.add_column(table.words.shots, justify="right", no_wrap=True)
    grid.add_column("method", overflow="fold", max_width=_NAME_CELLS)
    for column in columns:
        grid.add_column(Text(escape.line(column.title)), justify="right", no_wrap=True)
    for block in table.blocks:
        grid.add_section()
        for row in block.rows:
            name = Text(escape.line(row.label), _PUBLISHED if row.source else "")
            cells = [_cell(table, row, column, block.shots) for column in columns]
            grid.add_row(str(block.shots or "-"), name, *cells)
    return grid


def _cell(table: Table, row: Row, column: Column, shots: int) -> Text:
    cell = row.cells.get(column.key)
    if cell is None:
        return Text(MISSING, "dim")
    counted = shots > 0 and not row.source
    style = _BEST if cell.best else _PUBLISHED if row.source else ""
    return Text(cell_text(cell, column, counted, table.usual_runs), style)


def _fitting(table: Table, width: int) -> Iterator[Sequence[Column]]:
    """Return the columns in groups that fit next to the names of the rows."""
    rows = [(block.shots, row) for block in table.blocks for row in block.rows]
    names = min(_NAME_CELLS, max(cell_len(escape.line(row.label)) for _, row in rows))
    widths = []
    for column in table.columns:
        texts = [_cell(table, row, column, shots).plain for shots, row in rows]
        widths.append(_GAP + max(map(cell_len, [escape.line(column.title), *texts])))
    return fitting(table.columns, widths, width - len(table.words.shots) - names - 2 * _GAP)


def fitting(columns: Sequence[T], widths: Sequence[int], room: int) -> Iterator[list[T]]:
    """Yield columns in groups that fit into some cells of a line, at least one per group.

    Args:
        columns: in order.
        widths: cells of each column, with the gap before it.
        room: cells for a group.
    """
    group: list[T] = []
    left = room
    for column, width in zip(columns, widths, strict=True):
        if group and width > left:
            yield group
            group, left = [], room
        group.append(column)
        left -= width
    yield group
