"""Decoded test images in one memory-mapped file: how it is laid out, read and written.

From first byte to last: MAGIC; the header's length, 8 bytes; the header, a JSON object of all that
the pixels follow from; a CRC-32 of each image, 4 bytes each; the SHA-256 of all that; zeros up to a
multiple of 4096; the images, uint8 [3, side, side] each, one after the other. Numbers are
little-endian. Names that end in N and CHW: N images, each of C channels, H = W = side.
"""

import contextlib
import errno
import hashlib
import json
import mmap
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from so_clip.system.safe_open import open_plain

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MAGIC = b"soclipu8"
FORMAT_VERSION = 1
_PAGE = 4096
_DIGEST_BYTES = 32
_MAPPED_TOGETHER = 2**20

Pixels = npt.NDArray[np.uint8]
Identity = Mapping[str, Any]


class Torn(Exception):
    """A file is not what its name says; the message says why."""


class Layout:
    """Where things are in the file of an identity.

    Args:
        identity: JSON-able; has "count", of the images, and "image_size", their side in pixels.
    """

    def __init__(self, identity: Identity) -> None:
        self.identity = {"format": FORMAT_VERSION, **identity}
        header = json.dumps(self.identity, sort_keys=True).encode()
        self.key = hashlib.sha256(header).hexdigest()
        self.front = MAGIC + len(header).to_bytes(8, "little") + header
        self.count, side = int(identity["count"]), int(identity["image_size"])
        self.image_bytes = 3 * side * side
        head_bytes = len(self.front) + 4 * self.count + _DIGEST_BYTES
        self.start = -(-head_bytes // _PAGE) * _PAGE
        self.file_bytes = self.start + self.count * self.image_bytes

    def place(self, index: int) -> int:
        """Return the offset of an image."""
        return self.start + index * self.image_bytes

    def head(self, crc_N: npt.NDArray[np.uint32]) -> bytes:
        """Return all that lies before the images."""
        head = self.front + crc_N.astype("<u4").tobytes()
        return (head + hashlib.sha256(head).digest()).ljust(self.start, b"\0")

    def crcs_of(self, head: bytes) -> npt.NDArray[np.uint32]:
        """Return the checksums in a head; Torn if it is not this file's, or not whole."""
        if not head.startswith(self.front):
            raise Torn("it was written for other images")
        crc_N = np.frombuffer(head, "<u4", self.count, len(self.front)).astype(np.uint32)
        if head != self.head(crc_N):
            raise Torn("its head is damaged")
        return crc_N


class DecodedImages:
    """A whole file, opened for reading; from then on nobody takes it away.

    Args:
        path: of the file.
        layout: that it must have.

    Raises:
        Torn: it has not, or was cut short. Images are looked at when they are read.
        OSError: it cannot be opened; FileNotFoundError if it is not there.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path, self.layout = path, layout
        self._descriptor = open_plain(path)
        try:
            # Where there are no locks, a file that is deleted lives on until it is closed.
            with contextlib.suppress(OSError):
                lock(self._descriptor, shared=True)
            size = os.fstat(self._descriptor).st_size
            if size != layout.file_bytes:
                raise Torn(f"it has {size} bytes and should have {layout.file_bytes}")
            self._map = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
        except BaseException:
            os.close(self._descriptor)
            raise
        try:
            self._crc_N = layout.crcs_of(self._map[: layout.start])
        except BaseException:
            self.close()
            raise
        with contextlib.suppress(OSError):  # when it was last used; it may be others' file
            os.utime(path)

    def read(self, index: int, out_CHW: Pixels) -> bool:
        """Copy one image into `out_CHW`, contiguous, and say whether its checksum is right."""
        layout = self.layout
        start = layout.place(index)
        flat = np.frombuffer(self._map, np.uint8, layout.image_bytes, start)
        out_CHW.reshape(-1)[...] = flat
        self._forget(start)
        # Of the copy: the file could change in between.
        return zlib.crc32(out_CHW.data) == self._crc_N[index]

    def close(self) -> None:
        """Let others take the file away."""
        # While an error is on its way, a reading that it broke off may still hold the map.
        with contextlib.suppress(BufferError):
            self._map.close()
        os.close(self._descriptor)

    def _forget(self, start: int) -> None:
        """Unmap an image's pages, so that a process grows by no more than a few images.

        And those before it, which the system maps together with what is read.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            first = max(0, start - _MAPPED_TOGETHER) // mmap.PAGESIZE * mmap.PAGESIZE
            end = min(start + self.layout.image_bytes, len(self._map))
            self._map.madvise(mmap.MADV_DONTNEED, first, end - first)


class Writer:
    """A file that is being made beside its name, which it gets when it is whole.

    Args:
        descriptor: open for writing and locked, so that no other process writes there.
        partial, path: what it is called until then, and then.
        layout: of the file.

    Attributes:
        error: what kept an image from being written; then the file never becomes whole.
    """

    def __init__(self, descriptor: int, partial: Path, path: Path, layout: Layout) -> None:
        self.path, self.layout = path, layout
        self.error: OSError | None = None
        self._descriptor, self._partial = descriptor, partial
        self._crc_N = np.zeros(layout.count, np.uint32)
        self._there_N = np.zeros(layout.count, bool)

    def put(self, index: int, image_CHW: Pixels) -> None:
        """Write one image, contiguous. Several threads may, each its own."""
        if self.error is not None:
            return
        try:
            _write_at(self._descriptor, image_CHW.data.cast("B"), self.layout.place(index))
        except OSError as error:
            self.error = error
            return
        self._crc_N[index] = zlib.crc32(image_CHW.data)
        self._there_N[index] = True

    def finish(self) -> bool:
        """Give the file its name, and return whether it got it: only with all images in it.

        It is not synced: what a loss of power tears, the checksums tell.
        """
        if self.error is None and self._there_N.all():
            try:
                _write_at(self._descriptor, memoryview(self.layout.head(self._crc_N)), 0)
                self._partial.replace(self.path)
            except OSError as error:
                self.error = error
            else:
                os.close(self._descriptor)
                return True
        self.abandon()
        return False

    def abandon(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(OSError):
            self._partial.unlink()
        os.close(self._descriptor)


def lock(descriptor: int, shared: bool) -> None:
    """Lock an open file until it is closed, or its process ends, however it does.

    Raises:
        BlockingIOError: another process, or another opening of it, has it locked.
        OSError: there are no locks here.
    """
    if fcntl is None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
