"""Opens and reads files of unknown origin: plain files only, and never more than a limit.

Reading a pipe would block. Reading a huge file would fill the memory.
"""

import errno
import os
import stat
from pathlib import Path

# The largest files that are read whole. JSON can take twenty times its size in memory.
MAX_VALUES_BYTES = 64 * 2**20  # several prompts for each of 20,000 classes take a tenth of it
MAX_YAML_BYTES = 4 * 2**20  # YAML takes a second or two for each MiB
MAX_LIST_BYTES = 128 * 2**20  # two million images, or as many rows
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


def read_plain(path: Path, most_bytes: int = MAX_VALUES_BYTES) -> bytes:
    """Return the content of a plain file of up to `most_bytes` bytes.

    Raises:
        OSError: the file is larger, or as in `open_plain`.
    """
    with os.fdopen(open_plain(path), "rb") as file:
        if os.fstat(file.fileno()).st_size <= most_bytes:
            data = file.read(most_bytes + 1)  # the file may grow meanwhile
            if len(data) <= most_bytes:
                return data
    text = f"it is larger than {most_bytes / 2**20:g} MiB, the most that is read"
    raise OSError(errno.EFBIG, text)
