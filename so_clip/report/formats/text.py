"""Tables as tidy CSV, Markdown and HTML; pandas lays them out."""

import html
import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from pandas.api.types import is_numeric_dtype

from so_clip.escape import csv_cell, csv_row, markdown
from so_clip.report.averages import AVERAGE
from so_clip.report.measures import Column
from so_clip.report.table import Block, Cell, Row, Table
from so_clip.report.wording import SENTENCE_WORDS

MISSING = "–"


def cell_text(cell: Cell, column: Column, counted: bool, usual_runs: int) -> str:
    """Return mean ± deviation [interval], and the number of runs if it is not the usual one.

    Args:
        cell: the cell.
        column: its column, for the decimals.
        counted: whether runs differ by seed; zero-shot and published rows do not.
        usual_runs: the number of runs that is not written.
    """
    text = f"{cell.mean:.{column.decimals}f}"
    interval = " [{:.1f}, {:.1f}]".format(*cell.interval) if cell.interval else ""
    if not cell.runs:  # published: as many digits as in the source
        return (text.removesuffix("0") if column.decimals > 1 else text) + interval
    if not math.isnan(cell.std):
        text += f" ± {cell.std:.{column.decimals}f}"
    text += interval
    return f"{text} ({cell.runs})" if counted and cell.runs != usual_runs else text


def tidy(tables: Sequence[Table]) -> pd.DataFrame:
    """Return the cells of one measure's tables, one per line: datasets and average, without costs.

    `source` is empty for the project's own runs; `uncertainty` is set for published scores. Sampled
    tasks have `interval`, the half width of their 95 % interval, in place of `std`. If there are
    tables of sentences, `task` names them, and `low` and `high` are the ends of the 95 % interval
    over test examples.
    """
    has_sentences = any(table.words is SENTENCE_WORDS for table in tables)
    rows: list[dict[str, Any]] = [
        {
            "dataset": column,
            "backbone": table.backbone,
            "shots": block.shots,
            "method": row.method,
            "method_title": row.title,
            "variant": row.variant,
            "mean": cell.mean,
            "interval" if table.measure.interval else "std": cell.std,
            "runs": None if row.source else cell.runs,
            "best": cell.best,
            "source": row.source,
            "uncertainty": cell.uncertainty,
        }
        | (_of_task(table, cell) if has_sentences else {})
        for table in tables
        for block in table.blocks
        for row in block.rows
        for column in (*table.datasets, AVERAGE)
        for cell in [row.cells.get(column)]
        if cell is not None
    ]
    return pd.DataFrame(rows).astype({"runs": "Int64"})


def _of_task(table: Table, cell: Cell) -> dict[str, Any]:
    low, high = cell.interval or (math.nan, math.nan)
    return {"task": table.words.task, "low": low, "high": high}


def to_csv(frame: pd.DataFrame) -> str:
    """Return a frame as CSV in which no text is a formula for a spreadsheet."""
    safe = frame.apply(lambda column: column if is_numeric_dtype(column) else csv_row(column))
    text: str = safe.rename(columns=csv_cell).to_csv(index=False)
    return text


def text_frame(
    table: Table,
    blocks: Sequence[Block],
    escape: Callable[[str], str],
    bold: str,
    name: Callable[[Row], str],
) -> pd.DataFrame:
    """Return the rows of some blocks as texts in a markup language.

    Args:
        table: the table.
        blocks: its blocks, or some of them.
        escape: escapes plain text.
        bold: a format string for the best cells.
        name: returns the escaped name of a row.
    """
    lines = []
    for block in blocks:
        for row in block.rows:
            line = [str(block.shots or "-"), name(row)]
            for column in table.columns:
                cell = row.cells.get(column.key)
                if cell is None:
                    line.append(escape(MISSING))
                    continue
                counted = block.shots > 0 and not row.source
                text = escape(cell_text(cell, column, counted, table.usual_runs))
                line.append(bold.format(text) if cell.best else text)
            lines.append(line)
    titles = [table.words.shots, "method", *(column.title for column in table.columns)]
    return pd.DataFrame(lines, columns=list(map(escape, titles)))


def to_markdown(table: Table) -> str:
    """Return the table in Markdown: caption, cells and notes."""

    def name(row: Row) -> str:
        label = markdown(row.name)
        return f"*{label} [{markdown(row.reference)}]*" if row.source else label

    frame = text_frame(table, table.blocks, markdown, "**{}**", name)
    notes = "\n".join(f"- {markdown(note)}" for note in table.notes)
    parts = (markdown(table.caption) + ".", _markdown(frame, texts=2), notes)
    return "\n\n".join(filter(None, parts)) + "\n"


def frame_to_markdown(frame: pd.DataFrame, caption: str, texts: int) -> str:
    """Return a frame of texts in Markdown; its first `texts` columns are no numbers."""
    return f"{markdown(caption)}\n\n{_markdown(frame.map(markdown), texts)}\n"


def _markdown(frame: pd.DataFrame, texts: int) -> str:
    alignment = ["left"] * texts + ["right"] * (len(frame.columns) - texts)
    return frame.to_markdown(index=False, disable_numparse=True, colalign=alignment)


def to_html(table: Table) -> str:
    """Return the table as an HTML fragment: a `table` with one `tbody`, and a list of notes."""

    def name(row: Row) -> str:
        label = html.escape(row.name)
        if row.source:
            label = (
                f'<em>{label}</em> <small class="published">{html.escape(row.reference)}</small>'
            )
        return label

    frame = text_frame(table, table.blocks, html.escape, "<strong>{}</strong>", name)
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    fragment = _html(frame, table.caption, table.name)
    return fragment + (f'<ul class="notes">{notes}</ul>\n' if notes else "")


def frame_to_html(frame: pd.DataFrame, caption: str, name: str) -> str:
    """Return a frame of texts as an HTML fragment."""
    return _html(frame.map(html.escape).rename(columns=html.escape), caption, name)


def _html(frame: pd.DataFrame, caption: str, name: str) -> str:
    styler = frame.style.hide(axis="index").set_caption(html.escape(caption))
    text: str = styler.to_html(exclude_styles=True)
    return text.replace("<table>", f'<table id="{name}">', 1)
