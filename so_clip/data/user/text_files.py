"""Small files that a user writes by hand: JSON and YAML as plain values, anything else as text."""

import json
import stat
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from so_clip.data.cards.plain_yaml import load_plain_yaml
from so_clip.errors import InputError

# Several prompts for each of 20,000 classes are a tenth of it.
MAX_BYTES = 64 * 2**20


def read_values(file: Path, option: str) -> Any:
    """Return what a JSON or YAML file holds, or the text of any other.

    Args:
        file: its suffix says what it is.
        option: that names it, for messages.

    Raises:
        InputError: it is not there, no plain file, too large, no UTF-8, or not what its suffix
            says.
    """
    data = _content(file, option)
    suffix = file.suffix.lower()
    try:
        if suffix == ".json":
            return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_mapping)
        if suffix in (".yaml", ".yml"):
            return load_plain_yaml(data)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{file}: line {line}: is not UTF-8 text. Save it as UTF-8.") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        kind = "JSON" if suffix == ".json" else "YAML"
        raise InputError(f"{file}: is not {kind}: {' '.join(str(error).split())}.") from error


def lines_of(text: str) -> list[str]:
    """Return the lines of a text that are not blank, without blanks at their ends."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def _content(file: Path, option: str) -> bytes:
    try:
        status = file.stat()
        # A pipe would be waited for, for ever.
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{option}: {file} is no file.")
        if status.st_size > MAX_BYTES:
            raise InputError(f"{option}: {file} is larger than {MAX_BYTES // 2**20} MiB.")
        return file.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{option}: {file} cannot be read: {reason}.") from error


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} is given twice")
    return content
