"""Makes an HTML table from a CSV file that a command of this repository wrote.

A page describes it in YAML, in a block of kind `table`:

    file: results/tables/rte_methods.csv
    where: {shots: 4}                       # rows with these values; a list means any of them
    rows: [method_title]                    # group by these columns; or {method_title: Method}
    columns: shots                          # a column of the table for each value
    values: {accuracy_percent: "Accuracy (%)"}
    digits: 1                               # after the point; or {seeds: 0}: 1 for the others
    sort: accuracy_percent                  # largest first; "accuracy_percent ascending" otherwise

A number is the mean over its group, ± the standard deviation if the group has several rows, or if
the file has it in a column such as accuracy_percent_std. Text is shown as it is.
"""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

ROOT = Path(__file__).resolve().parents[2]
# Columns that say how a file was made, with their words below the table.
_ORIGIN = {"command": "Command", "hardware": "hardware", "threads": "threads", "torch": "torch"}
_HEADS = {"method_title": "Method", "title": "Method"}
_DIGITS = 1
Digits = Annotated[int, Field(ge=0, le=9)]


class TableError(Exception):
    """The description of a table does not fit its file."""


class Described(BaseModel):
    """The description of a table in a page."""

    model_config = ConfigDict(extra="forbid")

    file: str
    rows: list[str] | dict[str, str]
    values: dict[str, str]
    where: dict[str, Any] = {}
    columns: str | None = None
    digits: Digits | dict[str, Digits] = _DIGITS
    sort: str | None = None

    @property
    def heads(self) -> dict[str, str]:
        """Each column that groups rows, with its title."""
        if isinstance(self.rows, dict):
            return self.rows
        return {name: _title(name) for name in self.rows}

    def digits_of(self, column: str) -> int:
        """Return how many digits after the point a column's numbers have."""
        return self.digits if isinstance(self.digits, int) else self.digits.get(column, _DIGITS)


def table_of(source: str) -> str:
    """Return a described table and the origin of its numbers, as HTML.

    Raises:
        TableError: the description is no YAML of that form, or names an unknown file, column or
            value.
    """
    try:
        described = Described.model_validate(yaml.safe_load(source))
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise TableError("; ".join(wrong)) from error
    except yaml.YAMLError as error:
        raise TableError(str(error)) from error
    whole = _read(described)
    data = _selected(whole, described)
    if data.empty or not described.rows or not described.values:
        raise TableError(f"{described.file}: the table has no row or no column.")
    try:
        body = _html(described, data)
    except (TypeError, ValueError) as error:  # such as a mean of words
        raise TableError(f"{described.file}: {error}") from error
    return (
        '<div class="made-table"><div class="scroll" tabindex="0" role="group" '
        f'aria-label="Table from {html.escape(described.file)}">{body}</div>'
        f"{_origin(described.file, data)}</div>"
    )


def _read(described: Described) -> pd.DataFrame:
    path = ROOT / described.file
    inside = described.file.startswith("results/") and ".." not in path.parts
    if not inside or path.suffix != ".csv" or not path.is_file():
        raise TableError(f"{described.file}: there is no such CSV file below results/.")
    try:
        data: pd.DataFrame = pd.read_csv(path)
    except ValueError as error:  # pandas' errors are ValueErrors, also for bytes that are no text
        raise TableError(f"{described.file}: cannot be read: {error}") from error
    order = (described.sort or "").split(" ")[0]
    digits = described.digits if isinstance(described.digits, dict) else {}
    named = [*described.heads, *described.values, *described.where, *digits]
    named += [described.columns or "", order]
    for name in filter(None, named):
        if name not in data.columns:
            raise TableError(
                f"{described.file}: there is no column {name}. Columns: {', '.join(data.columns)}."
            )
    return data


def _selected(data: pd.DataFrame, described: Described) -> pd.DataFrame:
    """Return the rows with the values of `where`."""
    for name, wanted in described.where.items():
        choices = wanted if isinstance(wanted, list) and wanted else [wanted]
        for choice in choices:
            if not _equals(data[name], choice).any():
                found = ", ".join(map(str, data[name].dropna().unique()[:20]))
                raise TableError(
                    f"{described.file}: no row has {name}={choice} (with the conditions before "
                    f"it). Values: {found}."
                )
        data = data[sum(_equals(data[name], choice) for choice in choices) > 0]
    return data


def _equals(column: "pd.Series[Any]", value: object) -> Any:
    if value is None:
        return column.isna()
    if isinstance(value, bool) or not pd.api.types.is_numeric_dtype(column):
        return column.astype(str) == str(value)
    try:
        return column == float(str(value))
    except ValueError:  # a word, which no number equals
        return column.isin([])


def _html(described: Described, data: pd.DataFrame) -> str:
    heads, groups = described.heads, _groups(described, data)
    choices = sorted(data[described.columns].dropna().unique()) if described.columns else [None]
    top = [f'<th scope="col">{html.escape(title)}</th>' for title in heads.values()]
    for choice in choices:
        for label in described.values.values():
            shown = label if choice is None else _text(choice)
            if choice is not None and len(described.values) > 1:
                shown = f"{label}, {shown}"
            top.append(f'<th scope="col" class="number">{html.escape(shown)}</th>')
    rows = []
    for names, group in groups:
        cells = [f'<th scope="row">{html.escape(_text(name))}</th>' for name in names]
        for choice in choices:
            part = group if choice is None else group[group[described.columns] == choice]
            for column in described.values:
                shown = _cell(part, column, described.digits_of(column))
                cells.append(f'<td class="number">{html.escape(shown)}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    caption = ""
    if described.columns:
        labels = ", ".join(described.values.values())
        title = _title(described.columns)
        # A letter such as T is a symbol.
        text = f"{labels} by {title.lower() if len(title) > 1 else title}"
        caption = f"<caption>{html.escape(text)}</caption>"
    return (
        f'<table class="made">{caption}<thead><tr>{"".join(top)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _groups(described: Described, data: pd.DataFrame) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Return the groups in the file's order, or sorted."""
    grouped = data.groupby(list(described.heads), sort=False, dropna=False)
    groups = [(tuple(names), group) for names, group in grouped]
    if described.sort:
        column, _, order = described.sort.partition(" ")
        if order not in ("", "ascending"):
            raise TableError(f"sort: {described.sort}: write COLUMN or `COLUMN ascending`.")
        groups.sort(key=lambda pair: pair[1][column].mean(), reverse=not order)
    return groups


def _cell(group: pd.DataFrame, column: str, digits: int) -> str:
    values = group[column].dropna()
    if values.empty:
        return "–"
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        return ", ".join(dict.fromkeys(map(_text, values)))
    spread = values.std() if len(values) > 1 else None
    if len(values) == 1 and f"{column}_std" in group:
        own = group[f"{column}_std"].loc[values.index[0]]
        spread = None if pd.isna(own) else own
    shown = f"{values.mean():,.{digits}f}".replace("-", "−")
    return shown if spread is None else f"{shown} ± {spread:,.{digits}f}"


def _text(value: object) -> str:
    if isinstance(value, float):
        return "–" if pd.isna(value) else f"{value:g}"
    return str(value)


def _title(name: str) -> str:
    """Return a column's name as a title: `peak_memory_mib` as "Peak memory (MiB)"."""
    if name in _HEADS:
        return _HEADS[name]
    units: Mapping[str, str] = {"percent": "%", "mib": "MiB", "seconds": "s", "points": "points"}
    stem, _, unit = name.rpartition("_")
    if stem and unit in units:
        return f"{_title(stem)} ({units[unit]})"
    words = name.replace("_", " ")
    return words if len(words) == 1 else words[0].upper() + words[1:]


def _origin(file: str, data: pd.DataFrame) -> str:
    """Return the line below a table: its file, command, hardware, threads and torch version."""
    parts = [f"From <code>{html.escape(file)}</code>"]
    for column, word in _ORIGIN.items():
        if column in data:
            found = dict.fromkeys(map(_text, data[column].dropna()))
            shown = ", ".join(html.escape(value) for value in found)
            shown = f"<code>{shown}</code>" if column == "command" else shown
            parts.append(f"{word}: {shown}")
    return f'<p class="origin">{"; ".join(parts)}.</p>'
