"""An executor that runs calls in the test's process, so that monkeypatches apply."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any


class InProcess(Executor):
    """Replaces ProcessPoolExecutor; each call runs immediately."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def submit(self, function: Callable, /, *arguments: Any, **options: Any) -> Future:
        """Return the finished call; its errors are raised here."""
        done: Future = Future()
        done.set_result(function(*arguments, **options))
        return done
