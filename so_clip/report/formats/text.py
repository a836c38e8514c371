"""Tables as text: tidy CSV, Markdown, and an HTML fragment. LaTeX has a file of its own."""

import html
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from so_clip.report.tables import AVERAGE, Block, Cell, Column, Row, Table

MISSING = "–"


def cell_text(cell: Cell, column: Column, counted: bool, usual_runs: int) -> str:
    """Return mean ± deviation, and how many runs where that is another number than usual.

    Args:
        cell: what to write.
        column: it stands in, which knows the decimals.
        counted: whether seeds mean something here, as they do not for zero-shot and published rows.
        usual_runs: a number of runs that needs no word.
    """
    text = f"{cell.mean:.{column.decimals}f}"
    if not cell.runs:  # published, with as many digits as it was
        return text.removesuffix("0") if column.decimals > 1 else text
    if not math.isnan(cell.std):
        text += f" ± {cell.std:.{column.decimals}f}"
    return f"{text} ({cell.runs})" if counted and cell.runs != usual_runs else text


def row_texts(table: Table, block: Block, row: Row) -> list[str]:
    """Return what a row's cells say, "–" where there is nothing."""
    counted = block.shots > 0 and not row.source
    return [
        cell_text(row.cells[column.key], column, counted, table.usual_runs)
        if column.key in row.cells
        else MISSING
        for column in table.columns
    ]


def tidy(tables: Sequence[Table]) -> pd.DataFrame:
    """Return tables of one figure as a row a cell: datasets and their average, without costs.

    `source` is empty for this project's own runs, `uncertainty` is that of published figures.
    """
    rows = [
        {
            **{"dataset": column, "backbone": table.backbone, "shots": block.shots},
            **{"method": row.method, "method_title": row.title, "variant": row.variant},
            **{"mean": cell.mean, "std": cell.std, "runs": None if row.source else cell.runs},
            **{"best": cell.best, "source": row.source, "uncertainty": cell.uncertainty},
        }
        for table in tables
        for block in table.blocks
        for row in block.rows
        for column in (*table.datasets, AVERAGE)
        for cell in [row.cells.get(column)]
        if cell is not None
    ]
    return pd.DataFrame(rows).astype({"runs": "Int64"})


def to_markdown(table: Table) -> str:
    """Return the table in Markdown: caption, figures, notes, and commands for what is missing."""
    header = ["shots", "method", *(column.title for column in table.columns)]
    lines = []
    for block in table.blocks:
        for row in block.rows:
            texts = [
                f"**{text}**" if column.key in row.cells and row.cells[column.key].best else text
                for column, text in zip(table.columns, row_texts(table, block, row), strict=True)
            ]
            name = f"*{_plain(row.label)}*" if row.source else _plain(row.label)
            lines.append([str(block.shots or "-"), name, *texts])
    notes = "\n".join(f"- {_plain(note)}" for note in table.notes)
    commands = "\n".join(["```sh", *table.commands, "```"]) if table.commands else ""
    parts = (_plain(table.caption) + ".", _grid(header, lines, texts=2), notes, commands)
    return "\n\n".join(filter(None, parts)) + "\n"


def frame_to_markdown(frame: pd.DataFrame, caption: str, texts: int) -> str:
    """Return a frame of texts in Markdown; its first `texts` columns are no numbers."""
    rows = [list(map(_plain, row)) for row in frame.itertuples(index=False)]
    return f"{_plain(caption)}\n\n{_grid(list(frame.columns), rows, texts)}\n"


def frame_to_html(frame: pd.DataFrame, caption: str, name: str) -> str:
    """Return a frame of texts as an HTML fragment."""
    head = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in frame.columns)
    rows = (
        "".join(f"<td>{html.escape(text)}</td>" for text in row)
        for row in frame.itertuples(index=False)
    )
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<table id="{name}">\n<caption>{html.escape(caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n"
    )


def readable(frame: pd.DataFrame, digits: str = ".3g") -> pd.DataFrame:
    """Return a frame with its numbers as people read them, "–" for those that are not there."""

    def text(value: Any) -> str:
        if pd.isna(value):
            return MISSING
        return f"{value:{digits}}" if isinstance(value, float) else str(value)

    return frame.map(text)


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> str:
    """Return lines of a Markdown table; all columns but the first `texts` are numbers."""
    rule = ["---"] * texts + ["---:"] * (len(header) - texts)
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *rows])


def _plain(text: str) -> str:
    """Keep text from ending its cell, and its characters from meaning anything."""
    for character in "\\`*_|<":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def to_html(table: Table) -> str:
    """Return the table as an HTML fragment: one `table` with one `tbody`, so that it can be sorted.

    Every figure has its value in `data-value`, every row what may be filtered for in `data-shots`,
    `data-method` and `data-published`.
    """
    head = "".join(
        f'<th scope="col"{extra}>{html.escape(title)}</th>'
        for title, extra in (
            ("shots", ' class="number"'),
            ("method", ""),
            *((column.title, ' class="number"') for column in table.columns),
        )
    )
    body = "\n".join(_html_row(table, block, row) for block in table.blocks for row in block.rows)
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    commands = html.escape("\n".join(table.commands))
    return (
        f'<table id="{table.name}" data-figure="{table.figure.name}" '
        f'data-backbone="{html.escape(table.backbone)}">\n'
        f"<caption>{html.escape(table.caption)}</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n"
        + (f'<ul class="notes">{notes}</ul>\n' if notes else "")
        + (f"<pre><code>{commands}</code></pre>\n" if commands else "")
    )


def _html_row(table: Table, block: Block, row: Row) -> str:
    published = "true" if row.source else "false"
    label = html.escape(row.name)
    if row.source:
        label += f' <small class="published">{html.escape(row.reference)}</small>'
    cells = []
    for column, text in zip(table.columns, row_texts(table, block, row), strict=True):
        cell = row.cells.get(column.key)
        best = ' class="best"' if cell is not None and cell.best else ""
        value = "" if cell is None else f' data-value="{cell.mean:.6g}"'
        shown = f"<strong>{html.escape(text)}</strong>" if best else html.escape(text)
        cells.append(f"<td{best}{value}>{shown}</td>")
    return (
        f'<tr data-shots="{block.shots}" data-method="{html.escape(row.title)}" '
        f'data-published="{published}"><td data-value="{block.shots}">{block.shots or "-"}</td>'
        f'<th scope="row">{label}</th>{"".join(cells)}</tr>'
    )
