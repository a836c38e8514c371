"""One preparation at a time in one data root."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from so_clip.locks import lock_new, unlock

# A lock that is waited for is asked for so often.
POLL_SECONDS = 0.5


@contextmanager
def alone_in(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold `folder` against other preparations; wait for one that has it, on other machines too.

    See so_clip.locks. File systems without locks, Windows, and folders that may not be written, in
    which all there is to do is to look, are worked on without one.

    Args:
        folder: an existing folder.
        say: is told once if there is a wait.
    """
    try:
        lock = _lock(folder, say)
    except OSError:
        lock = None
    try:
        yield
    finally:
        unlock(folder, lock)


def _lock(folder: Path, say: Callable[[str], None]) -> int | None:
    with suppress(BlockingIOError):
        return lock_new(folder)
    say(f"another process is preparing datasets in {folder}; waiting until it is done")
    while True:
        time.sleep(POLL_SECONDS)
        with suppress(BlockingIOError):
            return lock_new(folder)
