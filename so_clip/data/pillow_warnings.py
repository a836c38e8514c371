"""Pillow's warnings about images: each kind once, with the first image that has it."""

import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import PIL

from so_clip.errors import say

_FOLDER = str(Path(PIL.__file__).parent)
_lock = threading.Lock()
_current = threading.local()


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Give the warnings of Pillow inside the context the name of the image."""
    _install()
    _current.file = file
    try:
        yield
    finally:
        _current.file = None


def _install() -> None:
    """Print the warnings of Pillow here, in all threads, and all others as before.

    warnings.catch_warnings cannot be used: threads that decode would disturb each other.
    """
    if not isinstance(warnings.showwarning, _Printer):
        with _lock:
            warnings.showwarning = _Printer(warnings.showwarning)
            # It also logs errors before it raises them.
            logging.getLogger("PIL").setLevel(logging.CRITICAL)


class _Printer:
    def __init__(self, others: Any) -> None:
        self._others, self._told = others, set[str]()

    def __call__(
        self, message: Any, category: Any, filename: str, lineno: int, *rest: Any, **named: Any
    ) -> None:
        file = getattr(_current, "file", None)
        if file is None or not filename.startswith(_FOLDER):
            self._others(message, category, filename, lineno, *rest, **named)
            return
        text = " ".join(str(message).split()).rstrip(".")
        kind = re.sub(r"\d+", "0", text)  # numbers differ between images
        with _lock:
            is_new = kind not in self._told
            self._told.add(kind)
        if is_new:
            say(f"{file}: Pillow warns: {text}. The image is used; others like it are not named.")
