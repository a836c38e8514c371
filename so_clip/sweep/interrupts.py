"""Ctrl-C and SIGTERM: the first ends a command or sweep with a message; the second kills it."""

import signal
import threading
from typing import Any

from so_clip.errors import Terminated

_DEFAULT_HANDLERS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class Interrupts:
    """Handlers of both signals for the time of a command or a sweep.

    The first signal raises KeyboardInterrupt or Terminated; then the system's default handlers are
    set. A signal that is ignored (nohup) or has another handler is left alone.
    """

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}

    def watch(self) -> None:
        """Set the handlers."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python lets only the main thread set handlers
        for number, default in _DEFAULT_HANDLERS.items():
            if signal.getsignal(number) == default:
                self._before[number] = signal.signal(number, self._raise)

    def unwatch(self) -> None:
        """Set the handlers that were there before `watch`."""
        while self._before:
            signal.signal(*self._before.popitem())

    def _raise(self, number: int, frame: Any) -> None:
        for watched in self._before:
            signal.signal(watched, signal.SIG_DFL)
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
