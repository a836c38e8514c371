"""Predictions as text: a table for people, tidy CSV, or JSON lines, made without torch."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from so_clip import escape
from so_clip.errors import InputError

if TYPE_CHECKING:
    from so_clip.predict.predictions import Prediction

Format = Literal["table", "csv", "jsonl"]
HEADER = ("path", "rank", "label", "class", "confidence")
_SUFFIXES: dict[str, Format] = {
    **{"": "csv", ".csv": "csv", ".txt": "table"},
    **{".jsonl": "jsonl", ".ndjson": "jsonl"},
}
# Longer texts are printed whole, and move the columns after them in their line.
_WIDEST = 60


class TextForm(NamedTuple):
    """The header of a format, and a function that returns the lines of a batch."""

    header: str
    lines: Callable[[Iterable["Prediction"]], str]


def default_format(out: Path | None, is_terminal: bool) -> Format:
    """Return the format that a file's suffix names; without a file, a table for a terminal.

    A pipe, and a file without a suffix, gets CSV.

    Raises:
        InputError: no format has the suffix.
    """
    if out is not None:
        if out.suffix.lower() not in _SUFFIXES:
            raise InputError(
                f"-o {out}: no format has the suffix {out.suffix}. Choose .csv, .jsonl or .txt, or "
                "add --format csv, jsonl or table."
            )
        return _SUFFIXES[out.suffix.lower()]
    return "table" if is_terminal else "csv"


def text_form(name: Format, paths: Sequence[str], class_names: Sequence[str]) -> TextForm:
    """Return a format; a table's columns fit these paths and class names."""
    if name == "jsonl":
        return TextForm("", _json_lines)
    if name == "csv":
        return TextForm(_csv([HEADER]), lambda predictions: _csv(_csv_rows(predictions)))
    widths = _width(["image", *paths]), _width(["class", *class_names])
    header = _line(widths, "image", "class", "confidence")
    return TextForm(header, partial(_table_lines, widths))


def _json_lines(predictions: Iterable["Prediction"]) -> str:
    """Return one object per line, in ASCII: a path that is not UTF-8 keeps its bytes as \\udc.."""
    return "".join(f"{json.dumps(_as_json(one))}\n" for one in predictions)


def _as_json(prediction: "Prediction") -> dict[str, Any]:
    ranked = zip(prediction.labels, prediction.names, prediction.confidences, strict=True)
    keys = HEADER[2:]
    return {
        "path": prediction.path,
        "predictions": [dict(zip(keys, values, strict=True)) for values in ranked],
    }


def _csv_rows(predictions: Iterable["Prediction"]) -> Iterator[Sequence[Any]]:
    for one in predictions:
        ranked = zip(one.labels, one.names, one.confidences, strict=True)
        for rank, (label, name, confidence) in enumerate(ranked, start=1):
            yield escape.csv_row([one.path, rank, label, name, confidence])


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _table_lines(widths: tuple[int, int], predictions: Iterable["Prediction"]) -> str:
    lines = []
    for one in predictions:
        shown = escape.line(one.path or "")
        for name, confidence in zip(one.names, one.confidences, strict=True):
            lines.append(_line(widths, shown, escape.line(name), f"{confidence:.4f}"))
            shown = ""
    return "".join(lines)


def _line(widths: tuple[int, int], image: str, name: str, confidence: str) -> str:
    return f"{_padded(image, widths[0])}  {_padded(name, widths[1])}  {confidence:>10}\n"


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _cells(text))


def _width(texts: Iterable[str]) -> int:
    return min(_WIDEST, max(_cells(escape.line(text)) for text in texts))


def _cells(text: str) -> int:
    """Return the width of a text on a terminal."""
    from rich.cells import cell_len  # rich slows down --help

    return cell_len(text)
