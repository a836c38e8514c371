"""Escape foreign text where it leaves the program: one function for each kind of exit.

Class names, titles, file names and messages in other people's files can hold terminal codes,
Markdown links and spreadsheet formulas. Every exit shows them as text. LaTeX and HTML have their
functions in so_clip.report.formats.
"""

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

# Joiners of scripts and emoji. Unlike other format characters they change no order of letters.
_JOINERS = "\u200c\u200d"
_MARKUP = re.compile(r"[\\`*_\[\]<>|~$@]|&(?=#?\w+;)|(?<=:)//|(?<=\bwww)\.", re.IGNORECASE)
# Spreadsheets take a cell that begins with one of these for a formula.
_FORMULA = re.compile(r"'*[=+\-@\t\r＝＋－＠]")
_BREAKS = {ord(letter): " " for letter in "\n\r\t\v\f\x85\u2028\u2029"}
_CODE = re.compile(r"\\u[0-9a-f]{4}")


def terminal(text: str) -> str:
    r"""Return text for a terminal: codes that control it become \uXXXX, but lines stay lines."""
    if text.isprintable():
        return text
    return "".join(
        letter if _is_shown(letter) or letter in "\n\t" else _code(letter) for letter in text
    )


def line(text: str) -> str:
    r"""Return text on one line: line breaks and tabs become blanks, other control codes \uXXXX."""
    return terminal(text.replace("\r\n", " ").translate(_BREAKS))


def markdown(text: str) -> str:
    """Return text on one line for Markdown, without markup, links, images or addresses."""
    return _MARKUP.sub(lambda match: f"\\{match[0]}", line(" ".join(text.split())))


def csv_cell(value: Any) -> Any:
    r"""Return a cell for a CSV file; `csv_text` reads it back. Only texts are changed.

    A formula gets an apostrophe in front, as in spreadsheets. Control codes become \uXXXX, but
    lines stay lines.
    """
    if not isinstance(value, str):
        return value
    shown = terminal(value)
    if shown != value or _CODE.search(value):
        value = terminal(value.replace("\\", "\\\\"))
    return f"'{value}" if _FORMULA.match(value) and not _is_number(value) else value


def csv_text(cell: str) -> str:
    """Return the text that `csv_cell` made a cell of."""
    if cell.startswith("'") and _FORMULA.match(cell):
        cell = cell[1:]
    if _CODE.search(cell):
        units = re.sub(
            r"\\(\\|u[0-9a-f]{4})",
            lambda match: "\\" if match[1] == "\\" else chr(int(match[1][1:], 16)),
            cell,
        )
        # Characters beyond U+FFFF have two codes. A lone surrogate stays: a file name may hold it.
        cell = units.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    return cell


def csv_row(values: Iterable[Any]) -> list[Any]:
    """Return the cells of a row for a CSV file."""
    return list(map(csv_cell, values))


def _is_shown(letter: str) -> bool:
    return letter.isprintable() or letter in _JOINERS or unicodedata.category(letter) == "Zs"


def _code(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
