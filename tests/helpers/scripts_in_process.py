"""An executor that does runs in the test's own process, where its patches are."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any


class InProcess(Executor):
    """Takes what a ProcessPoolExecutor takes, and does every call at once."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def submit(self, function: Callable, /, *arguments: Any, **options: Any) -> Future:
        """Return the finished call; what it raises is raised here."""
        done: Future = Future()
        done.set_result(function(*arguments, **options))
        return done
