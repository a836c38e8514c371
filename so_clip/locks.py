"""Locks on folders: they end with the process that holds them, however that ends."""

import os
import time
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_ATTEMPTS = 20


def lock_new(folder: Path) -> int | None:
    """Make a folder if it is not there, and lock it.

    Returns:
        A descriptor that holds the lock until it is closed; None where there are no locks.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the folder cannot be made or read.
    """
    for _ in range(_ATTEMPTS):
        # Another process may take the empty folder away again; mkdir, which finds it there and
        # then not, says that it exists.
        with suppress(FileNotFoundError, FileExistsError):
            return _make_and_lock(folder)
    return _make_and_lock(folder)


def is_locked(folder: Path) -> bool | None:
    """Whether a process holds a folder's lock; None where there are no locks.

    Asking takes a shared lock for an instant, so that many may ask at once.
    """
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def _make_and_lock(folder: Path) -> int | None:
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        for _ in range(_ATTEMPTS):
            if _is_locked(descriptor):
                # Is it still the folder of that name?
                if os.path.samestat(os.fstat(descriptor), os.stat(folder)):  # noqa: PTH116
                    return descriptor
                raise FileNotFoundError
            _check_only_asked_for(descriptor)
            time.sleep(1e-3 * (1 + os.getpid() % 7))  # no two in step
        raise BlockingIOError
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, (BlockingIOError, FileNotFoundError)):
            raise
        return None  # some network file systems have no locks
    except BaseException:
        os.close(descriptor)
        raise


def _is_locked(descriptor: int) -> bool:
    """Lock a folder for this process alone, and say whether that went well."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _check_only_asked_for(descriptor: int) -> None:
    """Raise BlockingIOError unless all who hold a lock do so for an instant, in `is_locked`."""
    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    fcntl.flock(descriptor, fcntl.LOCK_UN)
