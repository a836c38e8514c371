"""Locks on folders. A lock ends with its process, however the process ends.

The lock is a flock on the file `.lock` in the folder: NFS passes the locks of files to other
machines, but not the locks of folders. A process that gives the lock back removes the file first.
A process that opened the file before that gets a lock on a file without a name; filelock notices
this and tries again. A killed process leaves its file unlocked, and the next process takes it over.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from so_clip.system.safe_open import open_plain

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
_ATTEMPTS = 20
# `is_locked` holds a shared lock for an instant. A lock is refused only after this time.
_PATIENCE_SECONDS, _RETRY_SECONDS, _POLL_SECONDS = 0.1, 0.003, 0.5
# Errors of file systems without locks, such as some network file systems.
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
# Another process removed the file or the folder meanwhile. ESTALE is the error of NFS.
_REMOVED = {errno.ENOENT, errno.EEXIST, errno.ESTALE}


class FolderLock:
    """The lock of one folder, held by this process; see `lock_folder`."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / LOCK_FILE
        self._status: os.stat_result | None = None
        self._lock = FileLock(
            self._file,
            mode=0o666,  # another user may take the file of a killed process over
            thread_local=False,
            fallback_to_soft=False,
            on_acquired=self._remember_file,
        )

    def acquire(self, wait: bool) -> None:
        """Make the folder and take the lock; raises as `lock_folder`."""
        timing = (-1, _POLL_SECONDS) if wait else (_PATIENCE_SECONDS, _RETRY_SECONDS)
        for attempt in range(_ATTEMPTS):
            try:
                self._lock.acquire(timeout=timing[0], poll_interval=timing[1])
                return
            except Timeout:
                raise BlockingIOError(errno.EAGAIN, "it is locked", str(self._file)) from None
            except OSError as error:
                if error.errno not in _REMOVED or attempt == _ATTEMPTS - 1:
                    raise

    @property
    def is_in_place(self) -> bool:
        """Whether the folder still holds the locked file, so nobody removed or renamed it."""
        try:
            return self._status is not None and os.path.samestat(self._status, self._file.stat())
        except OSError:
            return False

    def release(self) -> None:
        """Remove the file and give the lock back."""
        with suppress(OSError):
            if self.is_in_place:  # a file of that name may be another process's by now
                self._file.unlink()
        with suppress(OSError):
            self._lock.release()

    def _remember_file(self, descriptor: int) -> None:
        self._status = os.fstat(descriptor)


def lock_folder(folder: Path, wait: bool = False) -> FolderLock | None:
    """Make a folder if it does not exist, and lock it.

    Args:
        folder: the folder.
        wait: wait for another process that holds the lock.

    Returns:
        The lock, to give back with `unlock`; None if the file system has no locks.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the folder or the lock file cannot be made or locked.
    """
    lock = FolderLock(folder)
    try:
        lock.acquire(wait)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return lock


def unlock(lock: FolderLock | None) -> None:
    """Give back the result of `lock_folder`, and remove the lock file."""
    if lock is not None:
        lock.release()


def is_locked(folder: Path) -> bool | None:
    """Return whether a process holds a folder's lock; None if the file system has no locks.

    It takes a shared lock for an instant, so any number of processes can ask at the same time.
    """
    if fcntl is None:
        return None
    try:
        descriptor = open_plain(folder / LOCK_FILE)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        return False if error.errno in _REMOVED else None
    finally:
        os.close(descriptor)
    return False
