"""Checks of one value from a configuration: each returns it in its own type, or says what is wrong.

`key` is the option's name as the user writes it; every InputError begins with it and the value.
"""

import math
import re
from pathlib import Path
from typing import Any

from so_clip.errors import InputError, nearest

# A part of a folder's name, which most file systems end at 255 bytes.
MAX_METHOD_NAME = 64
# A million GiB.
MAX_MIB = 1e9


def path(key: str, value: Any) -> Path:
    """Return a path, its ~ expanded; InputError if it is empty or no path."""
    if value is None or value == "":
        raise InputError(f"{key} is empty: it needs a path, such as {key}=FOLDER.")
    # A folder may be called 2024; `True` would be no one's wish.
    if isinstance(value, bool) or not isinstance(value, (str, int, Path)):
        raise InputError(f"{key}={value}: must be a path, such as {key}=FOLDER.")
    text = unicode_text(key, str(value))
    if "\0" in text:
        raise InputError(f"{key}={text!a}: holds a NUL character. Choose another name.")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~NAME of nobody
        raise InputError(f"{key}={text}: there is no such home. Write the path in full.") from error


def unicode_text(key: str, text: str) -> str:
    """Return the text; InputError if it cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{key}={text!a}: is not valid Unicode. Choose another name.") from None
    return text


def optional_path(key: str, value: Any) -> Path | None:
    """Return a path, or None for None; InputError as `path`."""
    return None if value is None else path(key, value)


def whole(key: str, value: Any, least: int, most: int | None = None) -> int:
    """Return a whole number of at least `least` and at most `most`; InputError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{key}={value}: must be a whole number, {least} or more.")
    if value < least:
        raise InputError(f"{key}={value}: must be {least} or more.")
    if most is not None and value > most:
        raise InputError(f"{key}={value}: must be {most} or less.")
    return value


def number(key: str, value: Any) -> float:
    """Return a finite number; InputError otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{key}={value}: must be a finite number.")
    return float(value)


def not_negative(key: str, value: Any, most: float = math.inf) -> float:
    """Return a finite number of 0 or above, and at most `most`; InputError otherwise."""
    if not 0 <= number(key, value) <= most:
        limit = "" if math.isinf(most) else f", at most {most:g}"
        raise InputError(f"{key}={value}: must be 0 or above{limit}.")
    return float(value)


def auto_mib(key: str, value: Any) -> float | None:
    """Return a number of MiB above 0, or None for auto; InputError otherwise."""
    if value == "auto":
        return None
    mib = value if value is None or isinstance(value, str) else number(key, value)
    if isinstance(mib, float) and 0 < mib <= MAX_MIB:
        return mib
    raise InputError(f"{key}={value}: must be auto, or a number above 0, at most {MAX_MIB:g}.")


def flag(key: str, value: Any) -> bool:
    """Return true or false; InputError otherwise."""
    if not isinstance(value, bool):
        raise InputError(f"{key}={value}: must be true or false.")
    return value


def one_of(key: str, value: Any, allowed: tuple[str, ...]) -> str:
    """Return one of `allowed`; InputError, with the nearest of them, otherwise."""
    if value not in allowed:
        raise InputError(
            f"{key}={value}: must be {' or '.join(allowed)}.{nearest(str(value), allowed)}"
        )
    return value


def method_name(key: str, value: Any) -> str:
    """Return the name of a method, which becomes a part of the run folder's; InputError else."""
    if value is None or not re.fullmatch(f"[A-Za-z0-9_-]{{1,{MAX_METHOD_NAME}}}", str(value)):
        raise InputError(
            f"{key}={value}: must be made of letters, digits, _ and -, at most "
            f"{MAX_METHOD_NAME} of them."
        )
    return str(value)


def title(key: str, value: Any) -> str:
    """Return the title of a method, which becomes a cell of a table; InputError otherwise."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or "|" in value:
        raise InputError(
            f"{key}={value!r}: must be a line of text without |, for it heads a table's row."
        )
    return value


def device_name(key: str, value: Any) -> str:
    """Return the name of a device, whether it is there or not; InputError for no such name."""
    if not re.fullmatch("auto|cpu|cuda(:[0-9]{1,2})?", str(value)):
        raise InputError(f"{key}={value}: must be auto, cpu, cuda or cuda:N.")
    return str(value)
