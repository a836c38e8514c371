"""Finds images that are probably cut short, by a quick look at their ends."""

import os
from collections.abc import Iterable
from pathlib import Path

from so_clip.data.decode import why_too_large

# The last bytes of complete files. A file with another end is suspicious, and is decoded.
_ENDS = {".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9", ".png": b"IEND\xaeB`\x82"}
_END_BYTES = 8


def suspicious(folder: Path, paths: Iterable[str]) -> list[str]:
    """Return the images that may be cut short, or are too large according to their headers.

    Complete JPEG and PNG files have known last bytes. Files of other kinds are all suspicious.
    """
    return [path for path in paths if not _looks_complete(folder / path)]


def spread(paths: list[str], count: int) -> list[str]:
    """Return `count` of the paths, evenly spaced, so that every class is represented."""
    if count >= len(paths):
        return paths
    return [paths[index * len(paths) // count] for index in range(count)]


def _looks_complete(file: Path) -> bool:
    end = _ENDS.get(file.suffix.lower())
    if end is None:
        return False
    try:
        with file.open("rb") as stream:
            stream.seek(-min(_END_BYTES, os.fstat(stream.fileno()).st_size), os.SEEK_END)
            if not stream.read().endswith(end):
                return False
            stream.seek(0)
            return not why_too_large(stream)
    except OSError:
        return False
