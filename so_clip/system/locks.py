"""Locks on folders: they end with the process that holds them, however that ends.

A lock is flock on a file in the folder, not on the folder itself: on NFS, Linux hands locks of
files to the server, which tells other machines, and those of folders not at all. For that the file
has to be open for writing.

Who gives a lock back takes its file away. A process that had opened the file before then holds a
lock on what has no name any more, finds that out, and tries again. A process that is killed leaves
its file, unlocked, and the next takes that over.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from so_clip.system.safe_open import open_plain

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
_ATTEMPTS = 20
# What file systems without locks, such as some of the network, answer.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


def lock_new(folder: Path) -> int | None:
    """Make a folder if it is not there, and lock it.

    Returns:
        A descriptor that holds the lock until it is closed, best by `unlock`; None where there are
        no locks.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the folder, or a file in it, cannot be made or locked.
    """
    for _ in range(_ATTEMPTS):
        # Another process may take the empty folder away again; mkdir, which finds it there and
        # then not, says that it exists.
        with suppress(FileNotFoundError, FileExistsError):
            return _make_and_lock(folder)
    return _make_and_lock(folder)


def unlock(folder: Path, descriptor: int | None) -> None:
    """Give back what `lock_new` returned for a folder, and take the lock's file away."""
    if descriptor is None:
        return
    file = folder / LOCK_FILE
    with suppress(OSError):
        if _is_open_at(descriptor, file):
            file.unlink()
    with suppress(OSError):  # children that were forked have the descriptor, too
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def is_locked(folder: Path) -> bool | None:
    """Whether a process holds a folder's lock; None where there are no locks.

    Asking takes a shared lock for an instant, so that many may ask at once.
    """
    if fcntl is None:
        return None
    for _ in range(_ATTEMPTS):
        try:
            descriptor = open_plain(folder / LOCK_FILE)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if _is_open_at(descriptor, folder / LOCK_FILE):
                return False
        except BlockingIOError:
            return True
        except OSError as error:
            if not _is_gone(error):
                return None
        finally:
            os.close(descriptor)
    return False


def _make_and_lock(folder: Path) -> int | None:
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        return None
    file = folder / LOCK_FILE
    descriptor = _open(file)
    try:
        for _ in range(_ATTEMPTS):
            if _take(descriptor):
                if _is_open_at(descriptor, file):
                    return descriptor
                raise FileNotFoundError
            _check_only_asked_for(descriptor)
            time.sleep(1e-3 * (1 + os.getpid() % 7))  # no two in step
        raise BlockingIOError
    except OSError as error:
        # The file stays: by its name it may be another's, who holds a lock on it.
        os.close(descriptor)
        if error.errno in _NO_LOCKS:
            return None
        if _is_gone(error):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), file) from error
        raise
    except BaseException:
        os.close(descriptor)
        raise


def _open(file: Path) -> int:
    try:
        return open_plain(file, os.O_RDWR | os.O_CREAT)
    except PermissionError:
        # Left by another user: not on NFS, but elsewhere this will do.
        return open_plain(file)


def _is_open_at(descriptor: int, file: Path) -> bool:
    """Whether an open file is still the one of its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))  # noqa: PTH116
    except OSError as error:
        if _is_gone(error):
            return False
        raise


def _is_gone(error: OSError) -> bool:
    """Whether this says that a file has no name any more; ESTALE is what NFS says."""
    return isinstance(error, FileNotFoundError) or error.errno == errno.ESTALE


def _take(descriptor: int) -> bool:
    """Lock a file for this process alone, and say whether that went well."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _check_only_asked_for(descriptor: int) -> None:
    """Raise BlockingIOError unless all who hold a lock do so for an instant, in `is_locked`."""
    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    fcntl.flock(descriptor, fcntl.LOCK_UN)


# A lock that is waited for is asked for so often.
POLL_SECONDS = 0.5


@contextmanager
def alone_in(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold `folder` against other preparations; wait for one that has it, on other machines too.

    Some file systems and Windows have no locks, and a folder may be read-only. Preparation then
    goes on without a lock.

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
