"""Compares what a block prints with the output that stands in the page.

Masked, because they differ in each run or on each machine: times and dates, sizes in bytes, hashes,
standard deviations (after ±), progress, colors, the reader's home and the blanks of tables. A
number with one or two decimals (an accuracy in percent) may differ by 3, or by 0.1 where both are
below 1. One with more decimals (a loss, a confidence) may differ by a quarter. Processors round
differently, and training amplifies it; the test of the demo allows as much. All other words and
whole numbers must be equal.
"""

import re
from itertools import zip_longest

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# How many of these lines there are depends on the machine.
_PROGRESS = re.compile(r"^step \d+ of \d+(, loss .*)?$|^forecast: (building|counting) |\d+%\|.*\|")
_MASKS = (
    (re.compile(r"\d{4}-\d\d-\d\d([T_ ]\d\d[:-]\d\d([:-]\d\d([.-]\d+)?)?Z?)?"), "DATE"),
    (re.compile(r"\b\d+:\d\d(:\d\d)?\b"), "TIME"),
    (re.compile(r"[\d.,]+ ?(ns|us|µs|ms|s|sec|seconds?|min|minutes?|h|hours?|d|days?)\b"), "TIME"),
    (re.compile(r"[\d.,]+ ?([KMGT]i?B|bytes?|B)\b"), "SIZE"),
    (re.compile(r"± \d+\.\d+"), "± SPREAD"),
    (re.compile(r"\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{7,64}\b"), "HASH"),
)
_MEASURE = re.compile(r"\((s|ms|min|h|[KMGT]i?B)\)|\b(seconds|time|memory)\b")
_NUMBER = re.compile(r"(?<![\w.])[+-]?\d+\.\d+(?:e[+-]?\d+)?")


def shown(text: str, home: str = "") -> str:
    """Return printed text as a page shows it: no colors, no progress, $HOME for the home."""
    lines = _ANSI.sub("", text).replace("\r\n", "\n").split("\n")
    lines = [line.rstrip("\r").split("\r")[-1].rstrip() for line in lines]
    lines = [line for line in lines if not _PROGRESS.search(line)]
    joined = "\n".join(lines).strip("\n")
    return joined.replace(home, "$HOME") if home else joined


def chosen(text: str, comment: str) -> str:
    """Return the lines that a comment such as `output: first 5 lines` chooses.

    Args:
        text: all that a block printed.
        comment: of the block of the page, or an empty text.

    Raises:
        ValueError: the comment is not known, or it chooses nothing.
    """
    lines = text.splitlines()
    if comment.startswith("output:"):
        choice = comment.removeprefix("output:").strip()
        if match := re.fullmatch(r"(first|last) (\d+) lines?", choice):
            count = int(match[2])
            lines = lines[:count] if match[1] == "first" else lines[-count:]
        elif match := re.fullmatch(r"lines with (.+)", choice):
            lines = [line for line in lines if match[1] in line]
        else:
            raise ValueError(
                f"<!-- {comment} -->: known are first N lines, last N lines, and lines with WORD"
            )
        if not lines:
            raise ValueError(f"<!-- {comment} -->: no line is left of\n{text}")
    return "\n".join(lines).strip("\n")


def difference(page: str, run: str) -> str:
    """Return the first difference between the page's output and the run's, or an empty text."""
    texts = page.strip("\n").splitlines(), run.strip("\n").splitlines()
    pairs = zip_longest(*map(_without_measures, texts), fillvalue="")
    for number, (old, new) in enumerate(pairs, start=1):
        if not _equal(_masked(old), _masked(new)):
            return f"line {number}:\n  page {old}\n  run  {new}"
    return ""


def _without_measures(lines: list[str]) -> list[str]:
    """Mask the columns of tables whose head has the unit of a time or of a size."""
    found: list[str] = []
    head: list[str] = []
    for line in lines:
        cells = line.split("|")
        if len(cells) < 3:
            head = []
        elif not head:
            head = cells
        elif len(cells) == len(head) and not re.fullmatch(r"[-:\s|]+", line):
            measured = [_MEASURE.search(title) for title in head]
            pairs = zip(cells, measured, strict=True)
            line = "|".join(" MEASURE " if is_one else cell for cell, is_one in pairs)
        found.append(line)
    return found


def _masked(line: str) -> str:
    for pattern, word in _MASKS:
        line = pattern.sub(word, line)
    line = re.sub(r"[-=─━═]{3,}", "---", line)
    return re.sub(r"\s+", " ", line).strip()


def _equal(old: str, new: str) -> bool:
    if old == new:
        return True
    if _NUMBER.sub("NUMBER", old) != _NUMBER.sub("NUMBER", new):
        return False
    return all(map(_close, _NUMBER.findall(old), _NUMBER.findall(new)))


def _close(old: str, new: str) -> bool:
    first, second = float(old), float(new)
    largest = max(abs(first), abs(second))
    if len(old.partition(".")[2]) <= 2:
        return abs(first - second) <= (3 if largest > 1 else 0.1)
    return abs(first - second) <= 0.25 * largest + 1e-9
