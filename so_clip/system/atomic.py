"""Files that are either whole or absent: written beside their name, synced, then renamed."""

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

_LONE = re.compile("[\ud800-\udfff]")
# Of a file's name while it is written; nobody reads one.
_UNFINISHED = "partial"
# No process takes so long between two bytes that it writes.
DEAD_AFTER_SECONDS = 3600.0


class CannotWrite(InputError):
    """A file cannot be written; `problem` names it and says why, without the way out."""

    def __init__(self, problem: str, option: str = "results_dir=FOLDER") -> None:
        super().__init__(f"{problem} Free the disk, or choose another folder with {option}.")
        self.problem = problem


@contextmanager
def placed_by(option: str) -> Iterator[None]:
    """Let what cannot be written inside name the option that decides on the folder.

    Args:
        option: as it is typed, such as "-o FOLDER"; runs and sweeps have results_dir.
    """
    try:
        yield
    except CannotWrite as error:
        raise CannotWrite(error.problem, option) from error


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write to, which becomes `path` at the end, unless something is raised.

    No reader, crash or full disk ever leaves a torn file.

    Raises:
        InputError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        before, after = f".{path.name}.", f".{_UNFINISHED}"
        descriptor, name = tempfile.mkstemp(after, before, path.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; results are meant to be read by others.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise CannotWrite(f"cannot write {path}: {error.strerror or error}.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` with the guarantees of `writing`."""
    with writing(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    r"""Write `text` as UTF-8, what is no Unicode as \udc.., with the guarantees of `writing`.

    Names of files may be any bytes, and so be texts that UTF-8 has nothing for.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    r"""Write `value` as indented JSON with the guarantees of `writing`; NaN is refused.

    What is no Unicode is read back as the text \udc.., which can be printed everywhere.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, _LONE.sub(r"\\\g<0>", text))


def remove_dead(folder: Path, after_seconds: float = DEAD_AFTER_SECONDS) -> None:
    """Remove what processes were writing in a folder when they were killed, as far as one can.

    Args:
        after_seconds: how long such a file has to have lain; 0 where nobody else can be writing.
    """
    since = time.time() - after_seconds
    with suppress(OSError):
        for file in folder.glob(f".*.{_UNFINISHED}"):
            with suppress(OSError):
                if not after_seconds or file.stat().st_mtime < since:
                    file.unlink()


def _sync_folder(folder: Path) -> None:
    """Let the new name outlive a loss of power, on systems that can say so of folders."""
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
