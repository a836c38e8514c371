"""Decoded test images, kept on disk for all runs that read them again: a folder of bounded size.

A file is named by the SHA-256 of all that its pixels follow from, and believed only as far as its
checksums go. Any number of processes may share the folder, and it may be deleted at any time: what
is not there, or cannot be kept, is decoded as if there were no cache. Nothing here fails a run.
"""

import contextlib
import os
import shutil
import stat
import sys
from pathlib import Path

import PIL
from PIL import features
from tqdm import tqdm

from so_clip.data.cache.decoded_file import (
    DecodedImages,
    Identity,
    Layout,
    Pixels,
    Torn,
    Writer,
    lock,
)
from so_clip.system.code_hash import code_sha256
from so_clip.system.locks import lock_folder, unlock
from so_clip.system.safe_open import open_plain

SUFFIX, PARTIAL = ".decoded", ".partial"
GIB = 2**30
# What is left free on the disk for other things.
RESERVE_BYTES = GIB
# The code that turns files into pixels, which no version number follows.
_CODE = ("data/images.py", "data/transforms.py")
_CODECS = ("jpg", "zlib", "libtiff", "webp", "jpg_2000", "libjpeg_turbo")


class DecodeCache:
    """The folder of decoded images.

    Args:
        folder: made when something is first kept in it.
        budget_bytes: what all its files may take; those that were read longest ago make room.
        reserve_bytes: what must stay free on the disk.
    """

    def __init__(self, folder: Path, budget_bytes: int, reserve_bytes: int = RESERVE_BYTES) -> None:
        self.folder, self.budget_bytes, self.reserve_bytes = folder, budget_bytes, reserve_bytes
        self._said: set[str] = set()
        self._made: list[Path] = []  # folders that are this one's doing, the innermost first

    def path(self, layout: Layout) -> Path:
        """Return where the file of a layout is, or would be."""
        return self.folder / f"{layout.key}{SUFFIX}"

    def open(self, layout: Layout) -> DecodedImages | None:
        """Open what is kept, or return None. A file that is not what it should be is deleted."""
        path = self.path(layout)
        try:
            return DecodedImages(path, layout)
        except FileNotFoundError:
            return None
        except Torn as error:
            self.discard(path, str(error))
        except (OSError, ValueError) as error:  # mmap has a ValueError for an empty file
            self.say(f"{path} cannot be read: {_reason(error)}. The images are decoded anew.")
        return None

    def begin(self, layout: Layout) -> Writer | None:
        """Begin to make a file, or return None: another process does, or there is no room."""
        needed = layout.file_bytes
        if needed > self.budget_bytes:
            self._not_kept(f"they take {_gib(needed)} GiB")
            return None
        try:
            self._made += [
                each for each in (self.folder, *self.folder.parents) if not each.exists()
            ]
            others_wait = lock_folder(self.folder)
            writer = None
            try:
                writer = self._begin(layout)
            finally:
                unlock(others_wait)
                if writer is None:
                    self.give_up()
            return writer
        except BlockingIOError:  # another process makes room just now
            return None
        except OSError as error:
            self.not_written(error)
            return None

    def give_up(self) -> None:
        """Take away the folders that were made for what is not kept, as far as they are empty."""
        with contextlib.suppress(OSError):
            for folder in self._made:
                folder.rmdir()

    def discard(self, path: Path, reason: str) -> None:
        """Delete a file that cannot be believed."""
        self.say(f"{path} is deleted: {reason}. Its images are decoded anew.")
        with contextlib.suppress(OSError):
            path.unlink()

    def say(self, text: str) -> None:
        """Print a message to stderr, once, on a line of its own even below a progress bar."""
        if text not in self._said:
            tqdm.write(f"so_clip: {text}", file=sys.stderr)
        self._said.add(text)

    def not_written(self, error: OSError) -> None:
        """Say that a file could not be made."""
        self._not_kept(f"{self.folder} cannot be written: {_reason(error)}")

    def _begin(self, layout: Layout) -> Writer | None:
        path = self.path(layout)
        partial = path.with_suffix(PARTIAL)
        descriptor = _claimed(partial)
        if descriptor is None or path.exists():
            self._let_go(descriptor, partial)
            return None
        try:
            os.ftruncate(descriptor, 0)  # of a process that was killed
            if self._makes_room(layout.file_bytes, partial):
                _reserve(descriptor, layout.file_bytes)
                return Writer(descriptor, partial, path, layout)
        except BaseException:
            self._let_go(descriptor, partial)
            raise
        self._let_go(descriptor, partial)
        return None

    def _let_go(self, descriptor: int | None, partial: Path) -> None:
        if descriptor is not None:
            partial.unlink(missing_ok=True)
            os.close(descriptor)

    def _makes_room(self, needed: int, own: Path) -> bool:
        """Delete what killed processes left, and what was read longest ago as far as needed."""
        taken, files = 0, []
        for path in self.folder.iterdir():
            if path == own or path.suffix not in (SUFFIX, PARTIAL):
                continue
            if path.suffix == PARTIAL and _is_free(path):
                path.unlink(missing_ok=True)
                continue
            # It may get its name, or be deleted, just now.
            with contextlib.suppress(FileNotFoundError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    taken += status.st_size
                    files.append((status.st_mtime_ns, status.st_size, path))
        for _, size, path in sorted(files):
            if taken + needed <= self.budget_bytes:
                break
            if path.suffix == SUFFIX and _is_free(path):
                path.unlink(missing_ok=True)
                taken -= size
        if taken + needed > self.budget_bytes:
            self._not_kept(f"they take {_gib(needed)} GiB beside {_gib(taken)} GiB that are in use")
            return False
        free = shutil.disk_usage(self.folder).free
        if free < needed + self.reserve_bytes:
            self._not_kept(
                f"they take {_gib(needed)} GiB, the disk of {self.folder} has {_gib(free)} GiB "
                f"left, and {_gib(self.reserve_bytes)} GiB stay free"
            )
            return False
        return True

    def _not_kept(self, reason: str) -> None:
        self.say(
            f"decoded test images are not kept: {reason} (evaluation.decode_cache_gib="
            f"{self.budget_bytes / GIB:g}). They are decoded each time."
        )


class DecodedPass:
    """One pass over all test images: out of the cache if they are there, and else into it.

    Args:
        cache: where.
        layout: of the images' file.
    """

    def __init__(self, cache: DecodeCache, layout: Layout) -> None:
        self._cache, self._layout = cache, layout
        self._kept = cache.open(layout)
        self._writer = cache.begin(layout) if self._kept is None else None
        self._damaged: list[int] = []

    @property
    def from_cache(self) -> int:
        """How many images a whole pass took from the cache."""
        return 0 if self._kept is None else self._layout.count - len(self._damaged)

    def fill(self, index: int, out_CHW: Pixels) -> bool:
        """Copy one image out of the cache; return False if it has to be decoded."""
        if self._kept is None:
            return False
        if self._kept.read(index, out_CHW):
            return True
        self._damaged.append(index)
        return False

    def keep(self, index: int, image_CHW: Pixels) -> None:
        """Write one decoded image into the cache, if it is being made."""
        if self._writer is not None:
            self._writer.put(index, image_CHW)

    def close(self) -> None:
        """End the pass. What it made is kept if all images are in it."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            if not writer.finish():
                self._cache.give_up()
                if writer.error is not None:
                    self._cache.not_written(writer.error)
        if self._kept is not None:
            kept, self._kept = self._kept, None
            kept.close()
            if self._damaged:
                what = f"{len(self._damaged)} of its images have wrong checksums"
                self._cache.discard(kept.path, what)


def layout_of(contents_sha256: str, count: int, image_size: int) -> Layout:
    """Return the layout of the file of some test images.

    Args:
        contents_sha256: see so_clip.data.cache.image_hash.images_sha256.
        count: of images.
        image_size: side of the squares, pixels.
    """
    identity: Identity = {
        "images_sha256": contents_sha256,
        "count": count,
        "image_size": image_size,
        "transform": "RGB; shorter side to image_size, bicubic; central square",
        "pillow": PIL.__version__,
        "codecs": [features.version(codec) for codec in _CODECS],
        "code_sha256": code_sha256(*_CODE),
    }
    return Layout(identity)


def _claimed(partial: Path) -> int | None:
    """Open a file for writing and lock it; None if another process has it."""
    descriptor = open_plain(partial, os.O_RDWR | os.O_CREAT)
    try:
        lock(descriptor, shared=False)
        # Whoever had it may have given it its name, or deleted it, just now.
        if os.path.samestat(os.fstat(descriptor), partial.stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException as error:
        if isinstance(error, OSError) and not os.fstat(descriptor).st_size:
            with contextlib.suppress(OSError):
                partial.unlink()  # where there are no locks, nobody will make it whole
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _is_free(path: Path) -> bool:
    """Whether no living process has a file open. Where there are no locks, none is known to be."""
    try:
        descriptor = open_plain(path, os.O_RDWR)
    except OSError:
        return False
    try:
        lock(descriptor, shared=False)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _reserve(descriptor: int, size: int) -> None:
    """Take a file's room on the disk now, so that it is not found missing midway."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:  # macOS
        os.ftruncate(descriptor, size)


def _gib(size: int) -> str:
    return f"{size / GIB:.2g}"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
