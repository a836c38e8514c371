"""Atomic files: written under a temporary name, synced, then renamed."""

import io
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from so_clip.errors import InputError

_SURROGATE = re.compile("[\ud800-\udfff]")
# The suffix of a file while it is written. No other code reads such a file.
_UNFINISHED = "partial"
# A writer that adds nothing for this time has been killed.
DEAD_AFTER_SECONDS = 3600.0


class CannotWrite(InputError):
    """A file cannot be written; `problem` names the file and the reason."""

    def __init__(self, problem: str, option: str = "results_dir=FOLDER") -> None:
        super().__init__(f"{problem} Free the disk, or choose another folder with {option}.")
        self.problem = problem


@contextmanager
def output_option(option: str) -> Iterator[None]:
    """Name another option in the messages of `CannotWrite`.

    Args:
        option: the command's option for the output folder, such as "-o FOLDER".
    """
    try:
        yield
    except CannotWrite as error:
        raise CannotWrite(error.problem, option) from error


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing, which becomes `path` at the end unless an exception is raised.

    Readers, crashes and full disks never see a partial file.

    Raises:
        CannotWrite: the folder cannot be written or the disk is full; no file is left.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        before, after = f".{path.name}.", f".{_UNFINISHED}"
        descriptor, name = tempfile.mkstemp(after, before, path.parent)
        temporary = Path(name)
        with _write_errors(descriptor) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private, but other users may read results.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise CannotWrite(f"cannot write {path}: {error.strerror or error}.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def _write_errors(descriptor: int) -> Iterator[IO[bytes]]:
    """Open a descriptor for writing; raise the error of a failed write in place of all others.

    Libraries such as torch turn it into an error of their own, without the reason.
    """
    raw = _Raw(descriptor, "wb")
    try:
        with io.BufferedWriter(raw) as file:
            yield file
    except Exception as error:
        if raw.error is not None:
            raise raw.error from error
        raise


class _Raw(io.FileIO):
    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` with the guarantees of `writing`."""
    with writing(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    r"""Write `text` as UTF-8 with the guarantees of `writing`.

    File names may hold bytes that are not UTF-8. Python reads them as surrogates, and these are
    written as \udc...
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    r"""Write `value` as indented JSON with the guarantees of `writing`; NaN is refused.

    Surrogates are read back as the text \udc.., which can be printed everywhere.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, _SURROGATE.sub(r"\\\g<0>", text))


def remove_dead(folder: Path, after_seconds: float = DEAD_AFTER_SECONDS) -> None:
    """Remove the unfinished files of killed processes from a folder; errors are ignored.

    Args:
        folder: the folder; folders in it are not searched.
        after_seconds: the age of files to remove; 0 if no other process can be writing.
    """
    since = time.time() - after_seconds
    with suppress(OSError):
        for file in folder.glob(f".*.{_UNFINISHED}"):
            with suppress(OSError):
                if not after_seconds or file.stat().st_mtime < since:
                    file.unlink()


def _sync_folder(folder: Path) -> None:
    """Write the new name to disk, on systems that can sync folders."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
