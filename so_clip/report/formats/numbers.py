"""One format for all numbers of a column."""

from typing import Any

import pandas as pd

from so_clip.report.formats.text import MISSING

# Decimals; or an exponent; or None for a column of texts.
Digits = int | str | None
EXPONENT = "e"
# Accuracies and their differences have two decimals in all tables.
_DECIMALS, _MOST_DECIMALS = 2, 3


def digits_of(column: "pd.Series[Any]") -> Digits:
    """Return the format of a column: the same for all of its numbers.

    Whole numbers have no decimals. P values have three, or all an exponent if the smallest would
    read 0.000. Other numbers have two decimals.
    """
    numbers = column.dropna()
    if not all(isinstance(value, (int, float)) for value in numbers.tolist()):
        return None
    if all(float(value).is_integer() for value in numbers) and not _is_p(column):
        return 0
    if not _is_p(column):
        return _DECIMALS
    smallest = min((value for value in numbers if value > 0), default=1.0)
    return EXPONENT if smallest < 0.5 * 10**-_MOST_DECIMALS else _MOST_DECIMALS


def _is_p(column: "pd.Series[Any]") -> bool:
    return str(column.name).split(" ")[0] == "p"


def in_format(value: Any, digits: Digits) -> str:
    """Return a number in the format of its column, as the page shows it."""
    if pd.isna(value):
        return MISSING
    if digits is None:
        return str(value)
    if digits != EXPONENT:
        return f"{value:.{digits}f}"
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa}e{int(exponent):+d}"


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame as texts, each column in one format, "–" for missing values."""
    texts = {}
    for name in frame.columns:
        digits = digits_of(frame[name])
        texts[name] = [in_format(value, digits) for value in frame[name]]
    return pd.DataFrame(texts, columns=frame.columns)
