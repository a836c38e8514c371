"""Ctrl-C and SIGTERM in a sweep: the first ends it with its summary, the next ends it at once."""

import signal
import threading
from typing import Any

from so_clip.errors import Terminated

_before: dict[signal.Signals, Any] = {}


def watch() -> None:
    """Let the first signal raise KeyboardInterrupt or Terminated, and the system see to the next.

    A signal that is ignored (nohup), or that somebody else sees to, is left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread may; signals come to it anyway
    for number, usual in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGTERM, signal.SIG_DFL),
    ):
        if signal.getsignal(number) == usual:
            _before[number] = signal.signal(number, _end)


def unwatch() -> None:
    """Put everything back as it was."""
    while _before:
        signal.signal(*_before.popitem())


def _end(number: int, frame: Any) -> None:
    for each in _before:
        signal.signal(each, signal.SIG_DFL)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
