"""The check that a folder can be written. No empty folder stays."""

import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from so_clip.errors import InputError, reason_of

_ATTEMPTS = 20


def check_writable(folder: Path) -> None:
    """Check, before any work is done, that results can be written below `folder`.

    No file of the check stays.

    Raises:
        InputError: with the folder and the reason.
    """
    created = missing_folders(folder)
    try:
        for attempts_left in reversed(range(_ATTEMPTS)):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.NamedTemporaryFile(dir=folder):
                    break
            except FileNotFoundError:
                # Another process ended its own check and removed the empty folder.
                if not attempts_left:
                    raise
    except OSError as error:
        raise InputError(
            f"results_dir={folder} cannot be written: {reason_of(error)}. "
            "Choose another folder with results_dir=FOLDER."
        ) from error
    finally:
        remove_empty(created)


def missing_folders(folder: Path) -> list[Path]:
    """Return the folder and its parents that do not exist, innermost first."""
    # Path.exists raises an error below a folder that may not be entered.
    return [path for path in (folder, *folder.parents) if not os.path.exists(path)]  # noqa: PTH110


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, innermost first, that hold nothing."""
    for path in folders:
        with contextlib.suppress(OSError):  # it is not empty: another run uses it
            path.rmdir()
