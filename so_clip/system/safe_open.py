"""Opening files in folders that others write to, too: never a pipe, which would be waited for."""

import errno
import os
import stat
from pathlib import Path

# Neither is there on Windows, where neither is needed.
_NO_WAIT, _NO_LINK = getattr(os, "O_NONBLOCK", 0), getattr(os, "O_NOFOLLOW", 0)
_BINARY = getattr(os, "O_BINARY", 0)


def open_plain(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a plain file and return its descriptor; a link is followed only where it is read.

    Raises:
        OSError: it is not there, may not be opened, or is no plain file.
    """
    no_link = _NO_LINK if flags & (os.O_RDWR | os.O_WRONLY) else 0
    descriptor = os.open(path, flags | _NO_WAIT | no_link | _BINARY, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no plain file")
    return descriptor


def read_plain(path: Path) -> bytes:
    """Return what a plain file holds; OSError as in `open_plain`."""
    with os.fdopen(open_plain(path), "rb") as file:
        return file.read()
