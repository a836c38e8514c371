"""Labelled sentences: one example, its label, and the hash of a dataset's contents."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from so_clip.data.plain_files import shortened
from so_clip.errors import InputError

# More than the rows of any GLUE task. A small file can claim billions of rows.
MAX_ROWS = 2_000_000
# The label of rows whose label is secret, in the hub's test splits.
_HIDDEN = "-1"


class Pair(NamedTuple):
    """One example: a sentence or two, its label, and its place in the file, counted from 0."""

    first: str
    second: str | None
    label: int
    row: int


def label_of(value: Any, label_names: Sequence[str], place: str) -> int:
    """Return the label of a value in a file: a label's name, or its number from 0.

    Raises:
        InputError: there is no such label, or it is hidden. The message begins with `place`.
    """
    text = str(value)
    if text in label_names:
        return label_names.index(text)
    if text.isascii() and text.isdecimal() and len(text) < 6 and int(text) < len(label_names):
        return int(text)
    if text == _HIDDEN:
        raise InputError(
            f"{place}: has the label -1, so its label is secret (a test split). Use files with "
            "labels."
        )
    known = ", ".join(f"{name} ({label})" for label, name in enumerate(label_names))
    raise InputError(f"{place}: there is no label {shortened(text)}. Known: {known}.")


def sentence_of(value: Any, column: str | int, place: str) -> str:
    """Return a sentence of a file; InputError, with `place`, if it is no text or holds NUL."""
    if not isinstance(value, str):
        raise InputError(f"{place}: column {column} must hold text, not {shortened(value)}.")
    if "\0" in value:
        raise InputError(
            f"{place}: column {column} holds a NUL character, so the file is damaged. Get it again."
        )
    return value


def contents_sha256(train: Sequence[Pair], validation: Sequence[Pair]) -> str:
    """Return the SHA-256 of all sentences and labels, in order; the file format has no effect."""
    digest = hashlib.sha256()
    for name, pairs in (("train", train), ("validation", validation)):
        rows = [pair[:3] for pair in pairs]
        digest.update(json.dumps([name, rows], separators=(",", ":")).encode())
    return digest.hexdigest()
