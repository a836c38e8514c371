"""Whether images can be decoded: all of them, or those that look as if they could not, and some."""

import os
from collections.abc import Iterable
from pathlib import Path

from so_clip.data.cache.corrupt import errors_of
from so_clip.data.images import ImageFolder, why_too_large

# How files end that were written to their end. A whole one may end otherwise, and is decoded then.
_ENDS = {".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9", ".png": b"IEND\xaeB`\x82"}
_END_BYTES = 8


def undecodable(folder: Path, paths: Iterable[str], what: str) -> dict[str, str]:
    """Decode images, in parallel; return those that cannot be, with what is wrong with each.

    Args:
        folder: where they are.
        paths: relative to it.
        what: for the progress bar.
    """
    errors = errors_of(ImageFolder(folder), paths, what)
    return {path: str(error) for path, error in errors.items()}


def suspicious(folder: Path, paths: Iterable[str]) -> list[str]:
    """Return the images that may be cut short, or are too large by their headers.

    JPEG and PNG files that were written to their end have a known one. Of other kinds nothing is
    known, so they are returned, too.
    """
    return [path for path in paths if not _looks_well(folder / path)]


def spread(paths: list[str], count: int) -> list[str]:
    """Return `count` of the paths, evenly from first to last, so that every class is among them."""
    if count >= len(paths):
        return paths
    return [paths[index * len(paths) // count] for index in range(count)]


def _looks_well(file: Path) -> bool:
    wanted = _ENDS.get(file.suffix.lower())
    if wanted is None:
        return False
    try:
        with file.open("rb") as stream:
            stream.seek(-min(_END_BYTES, os.fstat(stream.fileno()).st_size), os.SEEK_END)
            if not stream.read().endswith(wanted):
                return False
            stream.seek(0)
            return not why_too_large(stream)
    except OSError:
        return False
