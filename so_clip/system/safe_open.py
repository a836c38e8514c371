"""Opens files in folders that others can write to. A pipe is refused: reading it would block."""

import errno
import os
import stat
from pathlib import Path

# Windows has neither flag and needs neither.
_NO_WAIT, _NO_LINK = getattr(os, "O_NONBLOCK", 0), getattr(os, "O_NOFOLLOW", 0)
_BINARY = getattr(os, "O_BINARY", 0)


def open_plain(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a plain file and return its descriptor; a link is followed for reading only.

    Raises:
        OSError: the file does not exist, may not be opened, or is not a plain file.
    """
    no_link = _NO_LINK if flags & (os.O_RDWR | os.O_WRONLY) else 0
    descriptor = os.open(path, flags | _NO_WAIT | no_link | _BINARY, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a plain file")
    return descriptor


def read_plain(path: Path) -> bytes:
    """Return the content of a plain file; OSError as in `open_plain`."""
    with os.fdopen(open_plain(path), "rb") as file:
        return file.read()
