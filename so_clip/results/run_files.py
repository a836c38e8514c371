"""What lies in a run's folder, and how it is read: whoever looks at runs reads them here.

Nothing that lies where a file should be (a pipe, a folder, a link to nowhere, a torn or endless
file) holds a reader up or ends it: it is told as an InputError, by its path. Needs no torch.
"""

import csv
import errno
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from so_clip.errors import InputError
from so_clip.results.progress import PROGRESS_FILE
from so_clip.results.scores import ZERO_SHOT
from so_clip.system.safe_open import open_plain

CONFIG_FILE, METRICS_FILE, ERROR_FILE = "config.yaml", "metrics.json", "error.json"
PROVENANCE_FILE = "provenance.json"
HISTORY_FILE, CURVE_FILE, CHANGED_FILE = "history.csv", "curve.csv", "changed.csv"
PREDICTIONS_FILE, PER_CLASS_FILE = "predictions.csv", "per_class.csv"
# What metrics.json counts of corrupt images that were passed over, with on_corrupt=skip.
SKIPPED = {"train": "skipped_train_images", "test": "skipped_test_images"}
# Any of these makes a folder a run's, one that failed at once included.
RUN_FILES = frozenset({CONFIG_FILE, METRICS_FILE, ERROR_FILE, PROGRESS_FILE})
# Far beyond what runs leave: a file of JSON has some kilobytes, predictions of ImageNet have 5 MB.
MAX_BYTES, MAX_DEPTH = 2**28, 40
# Beyond any figure that there is; it also keeps out NaN and infinity, which compare with nothing.
_LARGEST = 2**63
# What a table reads of metrics.json, and of which type.
_TEXTS = ("dataset", "backbone", "method", "method_title")
_COUNTS = ("shots", "seed")
_FIGURES = ("accuracy_percent", "peak_memory_mib")
# What else it shows, where it is there.
_MORE_FIGURES = (
    *("accuracy_percent", "base_accuracy_percent", "new_accuracy_percent"),
    *("harmonic_mean_percent", "train_seconds", "train_flops"),
    *("expected_calibration_error_percent", *SKIPPED.values()),
)

# Columns of a CSV file: arrays of numbers, lists of texts.
Columns = dict[str, Any]


def listing(folder: str | Path) -> tuple[frozenset[str], list[str]]:
    """Return the names of all that is in a folder, and the paths of the folders to look into.

    Those whose names begin with a dot, and links, are passed over: they are nobody's runs, and the
    way through a link may have no end.

    Raises:
        OSError: the folder is gone or may not be read.
    """
    with os.scandir(folder) as entries:
        inside = list(entries)
    below = [
        entry.path
        for entry in inside
        if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
    ]
    return frozenset(entry.name for entry in inside), below


def run_folders(top: Path, unreadable: list[str]) -> Iterator[str]:
    """Yield the run folders below `top`, and `top` itself if it is one; within runs are no others.

    Args:
        top: where to look.
        unreadable: gets a line for each folder that may not be read.
    """
    waiting = [str(top)]
    while waiting:
        folder = waiting.pop()
        try:
            names, below = listing(folder)
        except FileNotFoundError:
            continue  # gone since
        except OSError as error:
            unreadable.append(f"{folder} cannot be read: {error.strerror or error}.")
            continue
        is_run = is_run_folder(names, folder == str(top))
        if is_run:
            yield folder
        if not is_run or folder == str(top):
            waiting += below


def is_run_folder(names: frozenset[str], is_top: bool = False) -> bool:
    """Whether a folder with these names in it is a run's.

    Where one begins to look there may be a config.yaml of anything; that alone makes no run there.
    """
    return not (RUN_FILES - {CONFIG_FILE} if is_top else RUN_FILES).isdisjoint(names)


def read_bytes(path: Path) -> bytes:
    """Return what a plain file holds.

    Raises:
        OSError: it is not there, may not be read, is no plain file or larger than `MAX_BYTES`.
    """
    descriptor = open_plain(path)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if found.st_size > MAX_BYTES:
            raise OSError(errno.EFBIG, f"it has {found.st_size} bytes")
        return file.read(MAX_BYTES)


def read_json(path: Path) -> Any:
    """Return what a file of JSON holds.

    Raises:
        InputError: it is not there, is no such file, or is nested beyond all use.
    """
    try:
        value = json.loads(read_bytes(path))
    except OSError as error:
        raise _unreadable(path, error.strerror or error) from None
    except ValueError as error:
        raise _unreadable(path, error) from None
    except RecursionError:
        value = None
    else:
        if not _is_deeper(value, MAX_DEPTH):
            return value
    raise _unreadable(path, "it is nested too deeply")


def _unreadable(path: Path, reason: object) -> InputError:
    return InputError(f"{path} cannot be read: {reason}. Delete its folder and repeat.")


def _is_deeper(value: Any, depth: int) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    inside = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(
        _is_deeper(each, depth - 1) for each in inside if isinstance(each, (dict, list))
    )


def read_object(path: Path) -> dict[str, Any]:
    """Return a JSON file's object; an empty one if it is gone, torn or of another kind."""
    try:
        values = read_json(path)
    except InputError:
        return {}
    return values if isinstance(values, dict) else {}


def read_metrics(path: Path) -> dict[str, Any]:
    """Read one metrics.json.

    Raises:
        InputError: the file is not a JSON object.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path} does not hold a JSON object. Delete its folder and repeat.")
    return values


def finished_metrics(folder: Path) -> dict[str, Any]:
    """Return the metrics of a finished run that a table can show.

    Raises:
        InputError: metrics.json is not there or damaged, or a figure in it is none.
    """
    path = folder / METRICS_FILE
    metrics = read_metrics(path)

    def check(key: str, well: bool, value: Any) -> None:
        if not well:
            shown = repr(value)[:80]
            raise InputError(f"{path}: {key} is {shown}. Delete its folder and repeat.")

    for key in _TEXTS:
        check(key, isinstance(metrics.get(key), str), metrics.get(key))
    for key in _COUNTS:
        value = metrics.get(key)
        check(key, type(value) is int and is_figure(value), value)
    for key in _FIGURES:
        check(key, is_figure(metrics.get(key)), metrics.get(key))
    check("settings", isinstance(metrics.get("settings"), dict), metrics.get("settings"))
    for key in (*_MORE_FIGURES, *(f"{ZERO_SHOT}{key}" for key in _MORE_FIGURES)):
        value = metrics.get(key)
        check(key, value is None or is_figure(value), value)
    given = metrics.get("transfer") or {}
    well = isinstance(given, dict) and all(
        isinstance(each, dict) and is_figure(each.get("accuracy_percent"))
        for each in given.values()
    )
    check("transfer", well, given)
    return metrics


def is_figure(value: Any) -> bool:
    """Whether this is a number that there is a mean of; true, say, is none."""
    return type(value) in (int, float) and 0 <= value < _LARGEST


def read_columns(
    path: Path,
    *,
    whole: Sequence[str] = (),
    numbers: Sequence[str] = (),
    texts: Sequence[str] = (),
) -> Columns:
    """Return columns of a CSV file.

    Not by pandas, which takes ten times as long for files so small, and a class "nan" for a number.

    Args:
        path: the file.
        whole: columns of whole numbers.
        numbers: columns of numbers; an empty cell is NaN.
        texts: columns of texts, returned as lists.

    Raises:
        InputError: it is not there, has no row, is torn, or a column is missing or of another kind.
    """
    try:
        header, *rows = csv.reader(io.StringIO(read_bytes(path).decode(), newline=""), strict=True)
        columns = dict(zip(header, zip(*rows, strict=True), strict=True))
        found: Columns = {name: list(columns[name]) for name in texts}
        found |= {name: np.array([*map(int, columns[name])], dtype=np.int64) for name in whole}
        for name in numbers:
            found[name] = np.array([float(cell or "nan") for cell in columns[name]])
    except OSError as error:
        raise _unreadable(path, error.strerror or error) from None
    except KeyError as error:
        raise _unreadable(path, f"it has no column {error}") from None
    except (ValueError, OverflowError, csv.Error) as error:
        raise _unreadable(path, f"it is no whole table ({error})") from None
    return found


def columns_if_whole(
    path: Path,
    *,
    whole: Sequence[str] = (),
    numbers: Sequence[str] = (),
    texts: Sequence[str] = (),
) -> Columns | None:
    """Return what `read_columns` does, and None where that cannot be read."""
    try:
        return read_columns(path, whole=whole, numbers=numbers, texts=texts)
    except InputError:
        return None
