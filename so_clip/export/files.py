"""The files of an export: all of them are written, or none."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from so_clip.errors import InputError, reason_of
from so_clip.system import atomic
from so_clip.system.atomic import CannotWrite

CARD_FILE, CLASSIFIER_FILE, CLASSES_FILE = "README.md", "classifier.safetensors", "classes.json"
SAFETENSORS = ".safetensors"
_FORCE = "--force"
_STAGING = ".export-"


def check_free(folder: Path, names: list[str], force: bool) -> None:
    """Check that an export replaces no file.

    Args:
        folder: of the export.
        names: of its files.
        force: whether it may replace files.

    Raises:
        InputError: there is such a file; or the folder is a file.
    """
    # Path.exists raises an error below a folder that may not be entered.
    if os.path.exists(folder) and not os.path.isdir(folder):  # noqa: PTH110, PTH112
        raise InputError(f"{folder} is a file, not a folder. Give another folder.")
    for name in names:
        path = folder / name
        if os.path.isdir(path):  # noqa: PTH112
            raise InputError(f"{path} is a folder, and the export writes a file there.")
        if not force and os.path.lexists(path):
            raise InputError(
                f"{path} exists. Give a place in a new folder, or replace the file with {_FORCE}."
            )


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Give a temporary folder; at the end its files move into `folder`, unless an error is raised.

    Raises:
        CannotWrite: the folder cannot be written, or the disk is full; no file is left.
    """
    from safetensors import SafetensorError

    created = [path for path in (folder, *folder.parents) if not os.path.exists(path)]  # noqa: PTH110
    staging: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_dead(folder)
        staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=folder))
        yield staging
        files = sorted(staging.iterdir(), key=lambda file: file.name == CARD_FILE)
        for file in files:
            _finish(file)
        for file in files:
            file.replace(folder / file.name)
        created = []
    except (OSError, SafetensorError) as error:
        raise CannotWrite(f"cannot write {folder}: {reason_of(error)}.") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        for path in created:
            if os.path.isdir(path) and not os.listdir(path):  # noqa: PTH112, PTH208
                path.rmdir()


def _remove_dead(folder: Path) -> None:
    """Remove the temporary folders of killed exports: nothing was added to them for a long time."""
    since = time.time() - atomic.DEAD_AFTER_SECONDS
    for staging in folder.glob(f"{_STAGING}*"):
        with suppress(OSError):
            if max(path.lstat().st_mtime for path in (staging, *staging.iterdir())) < since:
                shutil.rmtree(staging)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    """Write tensors as safetensors, or as a file of torch.save; the suffix decides.

    Args:
        path: of the file.
        tensors: by name; they are stored in their own precision.
        metadata: texts, for safetensors only.
    """
    from safetensors.torch import save_file

    whole = {name: _alone(value.detach().cpu().contiguous()) for name, value in tensors.items()}
    if path.suffix == SAFETENSORS:
        save_file(whole, path, metadata={"format": "pt", **metadata})
        return
    with atomic.writing(path) as file:
        torch.save(whole, file)


def _alone(value: Tensor) -> Tensor:
    """Return a tensor that shares its memory with no other: safetensors refuses shared memory."""
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()


def _finish(file: Path) -> None:
    """Write a file to the disk, readable like all files that the user makes."""
    mask = os.umask(0)
    os.umask(mask)
    file.chmod(0o666 & ~mask)
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
