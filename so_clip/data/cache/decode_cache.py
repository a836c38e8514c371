"""Decoded test images on disk, shared by all runs that read them: a folder of bounded size.

Each list of images has one file, KEY.npy: a NumPy array with one record per image, its CRC-32 and
its pixels. KEY is the SHA-256 of everything that decides the pixels. A file gets this name only
when it is complete, and each image is checked when it is read. Any number of processes may share
the folder, and it may be deleted at any time: missing images are decoded as without a cache. No
error here stops a run.
"""

import contextlib
import hashlib
import os
import shutil
import stat
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from so_clip.data.cache.decoded_file import (
    Damaged,
    Layout,
    Pixels,
    Records,
    create_records,
    delete,
    is_unused,
    lock_new_file,
    open_records,
)
from so_clip.data.images import ImageSource
from so_clip.errors import reason_of
from so_clip.escape import terminal
from so_clip.system.locks import lock_folder, unlock
from so_clip.system.threads import in_threads

SUFFIX, PARTIAL = ".npy", ".partial"
GIB = 2**30
# Disk space that the cache leaves free.
RESERVE_BYTES = GIB
_PATHS_PER_TASK = 64
# Reading the files shows a progress bar only if it takes longer.
_PATIENCE_SECONDS = 2


class DecodeCache:
    """The folder of decoded images.

    Args:
        folder: it is made when the first file is written.
        budget_bytes: limit of all files together. The least recently read files are deleted first.
        reserve_bytes: disk space that must stay free.
    """

    def __init__(self, folder: Path, budget_bytes: int, reserve_bytes: int = RESERVE_BYTES) -> None:
        self.folder, self.budget_bytes, self.reserve_bytes = folder, budget_bytes, reserve_bytes
        self._said: set[str] = set()
        self._new_folders: list[Path] = []

    def path(self, layout: Layout) -> Path:
        """Return the path of the file of a layout."""
        return self.folder / f"{layout.key}{SUFFIX}"

    def open(self, layout: Layout) -> Records | None:
        """Open the file of a layout for reading, or return None. A damaged file is deleted."""
        path = self.path(layout)
        try:
            return open_records(path, layout)
        except FileNotFoundError:
            return None
        except Damaged as error:
            self.discard(path, str(error))
        except (OSError, ValueError) as error:
            self._say(f"{path} cannot be read: {reason_of(error)}. The images are decoded again.")
        return None

    def begin(self, layout: Layout) -> Records | None:
        """Create the file of a layout under a temporary name, with its full size.

        Returns:
            Its records; None if another process writes this file or there is no room.
        """
        needed = layout.file_bytes
        if needed > self.budget_bytes:
            self._not_kept(f"they take {_gib(needed)} GiB")
            return None
        folders = (self.folder, *self.folder.parents)
        self._new_folders += [folder for folder in folders if not folder.exists()]
        records = None
        try:
            folder_lock = lock_folder(self.folder)
            try:
                records = self._create(layout)
                return records
            finally:
                unlock(folder_lock)
                if records is None:
                    self._remove_new_folders()
        except BlockingIOError:  # another process makes room at this moment
            return None
        except OSError as error:
            self._not_kept(f"{self.folder} cannot be written: {reason_of(error)}")
            return None

    def finish(self, records: Records, complete: bool) -> None:
        """Close a file from `begin`: give a complete file its name, and delete any other.

        The file is not synced. After a power failure, the checksums find incomplete images.
        """
        try:
            if complete:
                records.path.replace(records.path.with_suffix(SUFFIX))
        except OSError as error:
            self._not_kept(f"{self.folder} cannot be written: {reason_of(error)}")
        # After the renaming, there is no file of the temporary name.
        delete(records.path, records.descriptor)
        if not complete:
            self._remove_new_folders()

    def _remove_new_folders(self) -> None:
        """Remove folders that this cache made and that are empty: a refused run leaves nothing."""
        with contextlib.suppress(OSError):
            for folder in self._new_folders:
                folder.rmdir()

    def discard(self, path: Path, reason: str) -> None:
        """Delete a damaged file."""
        self._say(f"{path} is deleted: {reason}. Its images are decoded again.")
        with contextlib.suppress(OSError):
            path.unlink()

    def _say(self, text: str) -> None:
        """Print a message to stderr, once, on its own line even below a progress bar."""
        if text not in self._said:
            tqdm.write(f"so_clip: {terminal(text)}", file=sys.stderr)
        self._said.add(text)

    def _not_kept(self, reason: str) -> None:
        self._say(
            f"decoded test images are not kept: {reason} (evaluation.decode_cache_gib="
            f"{self.budget_bytes / GIB:g}). They are decoded each time."
        )

    def _create(self, layout: Layout) -> Records | None:
        path = self.path(layout)
        partial = path.with_suffix(PARTIAL)
        descriptor = lock_new_file(partial)
        if descriptor is None:
            return None
        records = None
        try:
            if not path.exists() and self._make_room(layout.file_bytes, partial):
                records = create_records(partial, layout, descriptor)
            return records
        finally:
            if records is None:
                delete(partial, descriptor)

    def _make_room(self, needed: int, new_file: Path) -> bool:
        """Delete files of killed processes, and the least recently read files as far as needed."""
        taken, files = 0, []
        for path in self.folder.iterdir():
            if path == new_file or path.suffix not in (SUFFIX, PARTIAL):
                continue
            if path.suffix == PARTIAL and is_unused(path):
                path.unlink(missing_ok=True)
                continue
            # Another process may rename or delete it now.
            with contextlib.suppress(FileNotFoundError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    taken += status.st_size
                    files.append((status.st_mtime_ns, status.st_size, path))
        for _, size, path in sorted(files):
            if taken + needed <= self.budget_bytes:
                break
            if path.suffix == SUFFIX and is_unused(path):
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


class DecodedPass:
    """One pass over all test images. It reads them from the cache, or writes them into it.

    Args:
        cache: the folder.
        layout: the layout of the images' file.
    """

    def __init__(self, cache: DecodeCache, layout: Layout) -> None:
        self._cache, self._layout = cache, layout
        self._kept = cache.open(layout)
        self._new = cache.begin(layout) if self._kept is None else None
        self._written_N = np.zeros(layout.count, bool)
        self._damaged: list[int] = []

    @property
    def from_cache(self) -> int:
        """The number of images that a whole pass takes from the cache."""
        return 0 if self._kept is None else self._layout.count - len(self._damaged)

    def fill(self, index: int, out_CHW: Pixels) -> bool:
        """Copy one image out of the cache; return False if it must be decoded."""
        if self._kept is None:
            return False
        record = self._kept.array_N[index]
        out_CHW[...] = record["pixels"]
        # The checksum of the copy, because the file could change in between.
        good = bool(zlib.crc32(out_CHW.data) == record["crc32"])
        self._kept.forget(index)
        if not good:
            self._damaged.append(index)
        return good

    def keep(self, index: int, image_CHW: Pixels) -> None:
        """Write one decoded image, contiguous, into the cache. Threads may do so in parallel."""
        if self._new is not None:
            self._new.array_N[index] = (zlib.crc32(image_CHW.data), image_CHW)
            self._new.forget(index)
            self._written_N[index] = True

    def close(self) -> None:
        """End the pass. A new file is kept only if it holds all images."""
        if self._new is not None:
            self._cache.finish(self._new, bool(self._written_N.all()))
        if self._kept is not None:
            os.close(self._kept.descriptor)
            if self._damaged:
                problem = f"{len(self._damaged)} of its images have wrong checksums"
                self._cache.discard(self._kept.path, problem)
        self._new = self._kept = None


def images_sha256(images: ImageSource, paths: Sequence[str], workers: int) -> str:
    """Return the SHA-256 of the contents of image files, in the order of the paths.

    Raises:
        InputError: the first image, in order, that cannot be read.
    """

    def digests(chunk: Sequence[str]) -> bytes:
        return b"".join(hashlib.sha256(images.content(path)).digest() for path in chunk)

    starts = range(0, len(paths), _PATHS_PER_TASK)
    chunks = [paths[start : start + _PATHS_PER_TASK] for start in starts]
    total = hashlib.sha256()
    for chunk in in_threads(digests, chunks, "look up", max(1, workers), delay=_PATIENCE_SECONDS):
        total.update(chunk)
    return total.hexdigest()


def _gib(size: int) -> str:
    return f"{size / GIB:.2g}"
