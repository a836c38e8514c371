"""One file of decoded test images: its layout, opening and creating it, and its lock.

Shapes: N images, C = 3 channels, H = W = the model's image size.
"""

import contextlib
import errno
import hashlib
import io
import json
import mmap
import os
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from so_clip.data.decode import decoder_versions
from so_clip.data.transforms import TestPixels
from so_clip.system.code_hash import code_sha256
from so_clip.system.safe_open import open_plain

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_FORMAT_VERSION = 2
# The code that decodes images. It has no version number.
_CODE = ("data",)
# The system maps up to this many bytes before an address when the address is read.
_MAPPED_TOGETHER = 2**20

Pixels = npt.NDArray[np.uint8]


class Damaged(Exception):
    """A file in the cache is not the complete file of its layout; the message says why."""


class Layout:
    """The layout of the file of some images.

    Args:
        contents_sha256: see images_sha256.
        count: number of images.
        pixels: the test transform.
    """

    def __init__(self, contents_sha256: str, count: int, pixels: TestPixels) -> None:
        identity = {
            "format": _FORMAT_VERSION,
            "images_sha256": contents_sha256,
            "count": count,
            "pixels": pixels.record(),
            "decoders": decoder_versions(),
            "code_sha256": code_sha256(*_CODE),
        }
        self.key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.count = count
        shape = (3, pixels.image_size, pixels.image_size)
        self.dtype = np.dtype([("crc32", "<u4"), ("pixels", "u1", shape)])

    @cached_property
    def header(self) -> bytes:
        """The first bytes of the file, as NumPy writes them."""
        values: dict[str, Any] = {
            "descr": npy.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.count,)
        }  # fmt: skip
        stream = io.BytesIO()
        npy.write_array_header_1_0(stream, values)
        return stream.getvalue()

    @property
    def file_bytes(self) -> int:
        """The size of the complete file."""
        return len(self.header) + self.count * self.dtype.itemsize


class Records(NamedTuple):
    """The mapped records of an open file. The file stays locked until it is closed."""

    path: Path
    descriptor: int
    array_N: "np.memmap[Any, Any]"

    def forget(self, index: int) -> None:
        """Unmap the pages of an image, so that a process grows by a few images only.

        This includes the pages before it, because the system maps them together with it.
        """
        pages = self.array_N.base
        if isinstance(pages, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            end = self.array_N.offset % mmap.ALLOCATIONGRANULARITY
            end = min(end + (index + 1) * self.array_N.itemsize, len(pages))
            first = max(0, end - self.array_N.itemsize - _MAPPED_TOGETHER)
            first = first // mmap.PAGESIZE * mmap.PAGESIZE
            pages.madvise(mmap.MADV_DONTNEED, first, end - first)


def open_records(path: Path, layout: Layout) -> Records:
    """Open a complete file for reading. Until it is closed, no process deletes it.

    Raises:
        Damaged: the size or the header is wrong. Images are checked when they are read.
        OSError: it cannot be opened.
    """
    descriptor = open_plain(path)
    try:
        # Without locks, a file that is deleted meanwhile stays readable until it is closed.
        with contextlib.suppress(OSError):
            _lock(descriptor, shared=True)
        size = os.fstat(descriptor).st_size
        if size != layout.file_bytes:
            raise Damaged(f"it has {size} bytes and should have {layout.file_bytes}")
        with open(descriptor, "rb", closefd=False) as file:
            if file.read(len(layout.header)) != layout.header:
                raise Damaged("its header is damaged")
            array_N = np.memmap(file, layout.dtype, "r", len(layout.header), (layout.count,))
        with contextlib.suppress(OSError):  # the time of the last use; another user may own it
            os.utime(path)
        return Records(path, descriptor, array_N)
    except BaseException:
        os.close(descriptor)
        raise


def create_records(partial: Path, layout: Layout, descriptor: int) -> Records:
    """Make the file of a locked descriptor as large as the layout.

    Raises:
        OSError: the disk has no room for it.
    """
    array_N = npy.open_memmap(partial, "w+", layout.dtype, (layout.count,))
    # Writing to a mapped file without disk space would kill the process.
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, layout.file_bytes)
    return Records(partial, descriptor, array_N)


def lock_new_file(partial: Path) -> int | None:
    """Create or open a file and lock it; return None if another process holds its lock."""
    descriptor = open_plain(partial, os.O_RDWR | os.O_CREAT)
    try:
        _lock(descriptor)
        # The process that held it may just have renamed or deleted it.
        if os.path.samestat(os.fstat(descriptor), partial.lstat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        delete(partial, descriptor)  # without locks, no process can complete it
        raise
    os.close(descriptor)
    return None


def _lock(descriptor: int, shared: bool = False) -> None:
    """Lock an open file until it is closed or its process ends.

    Raises:
        BlockingIOError: another process, or another descriptor of this process, holds the lock.
        OSError: the file system has no locks.
    """
    if fcntl is None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def is_unused(path: Path) -> bool:
    """Return whether no process has a file open; False if the file system has no locks."""
    try:
        descriptor = open_plain(path, os.O_RDWR)
    except OSError:
        return False
    try:
        _lock(descriptor)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def delete(path: Path, descriptor: int) -> None:
    """Delete and close a file."""
    with contextlib.suppress(OSError):
        path.unlink()
    os.close(descriptor)
