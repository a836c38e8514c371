"""The files of a run's folder, and how to read them. This module needs no torch.

A torn file, or a file of another kind, raises InputError with its path.
"""

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from so_clip.errors import InputError, reason_of
from so_clip.escape import csv_text
from so_clip.results.progress import PROGRESS_FILE
from so_clip.results.scores import ZERO_SHOT
from so_clip.system.safe_open import MAX_LIST_BYTES, read_plain

CONFIG_FILE, METRICS_FILE, ERROR_FILE = "config.yaml", "metrics.json", "error.json"
PROVENANCE_FILE = "provenance.json"
FEW_SHOT_FILE = "fewshot.json"  # the drawn training items
ADAPTER_FILE = "adapter.safetensors"
SMAT_FILE = "smat.safetensors"  # the experts that a meta-training wrote
# The key of metrics.json that runs of a method do not have, and its value of a meta-training.
KIND, META = "kind", "meta"
# The key of metrics.json that names the task, such as "sentences". Runs on images do not have it.
TASK = "task"
# The key of config.yaml and metrics.json that names the adapter of an evaluation.
ADAPTER_FROM = "adapter_from"
HISTORY_FILE, CURVE_FILE, CHANGED_FILE = "history.csv", "curve.csv", "changed.csv"
CHANGED_COLUMNS = ("tensor", "parameters", "changed", "tower", "block", "role")
PREDICTIONS_FILE, PER_CLASS_FILE = "predictions.csv", "per_class.csv"
TASKS_TABLE = "tasks.csv"
# The keys of metrics.json that count skipped corrupt images (on_corrupt=skip), by split.
SKIPPED = {"train": "skipped_train_images", "test": "skipped_test_images"}
# A folder with any of these files is a run's folder, also if the run failed at its start.
RUN_FILES = frozenset({CONFIG_FILE, METRICS_FILE, ERROR_FILE, PROGRESS_FILE})
# Larger than any true value. The limit also refuses NaN and infinity.
_LARGEST = 2**63
# The largest values of numbers by the end of their names. Rounding may exceed them a little.
_LIMITS = {"percent": 100.0, "confidence": 1.0, "seconds": 1e10, "mib": 1e9}
_ROUNDING = 1e-3
# Only these may be negative: a loss may hold penalties or rewards, and an adaptation may harm.
_SIGNED = ("loss", "difference_percent")
# A longer name or value of an option would fill a terminal, once in each row of a table.
MAX_TEXT = 5000
# What a table needs of metrics.json, by type, and the numbers that it shows if they are there.
_TEXTS = ("dataset", "backbone", "method", "method_title")
_COUNTS = ("shots", "seed")
_NUMBERS = ("accuracy_percent", "peak_memory_mib")
_OPTIONAL_NUMBERS = (
    "accuracy_percent",
    "base_accuracy_percent",
    "new_accuracy_percent",
    "harmonic_mean_percent",
    "train_seconds",
    "train_flops",
    "expected_calibration_error_percent",
    *SKIPPED.values(),
)

# Columns of a CSV file: arrays of numbers, lists of texts.
Columns = dict[str, Any]


def smat_file(place: str | Path) -> Path:
    """Return the checkpoint of a meta-training at a place: the file itself, or its run's folder."""
    path = Path(place).expanduser()
    return path / SMAT_FILE if os.path.isdir(path) else path  # noqa: PTH112 - a locked folder


def run_folders(top: Path, unreadable: list[str]) -> Iterator[str]:
    """Yield the run folders below `top`, and `top` itself if it is one.

    A run folder other than `top` is not searched. Links are not followed, because a link can lead
    back up; folders whose names begin with a dot are skipped.

    Args:
        top: the folder to search.
        unreadable: gets one line for each folder that cannot be read.
    """

    def note(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # it was removed meanwhile
            unreadable.append(f"{error.filename} cannot be read: {reason_of(error)}.")

    for folder, folders, files in os.walk(top, onerror=note):
        is_top = folder == str(top)
        # A config.yaml in the top folder may belong to anything, so it alone does not count there.
        wanted = RUN_FILES - {CONFIG_FILE} if is_top else RUN_FILES
        is_run = not wanted.isdisjoint([*folders, *files])
        if is_run:
            yield folder
        is_searched = is_top or not is_run
        folders[:] = [name for name in folders if is_searched and not name.startswith(".")]


def read_metrics(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file, such as metrics.json.

    Raises:
        InputError: the file is not there, is torn, or does not hold a JSON object.
    """
    try:
        values = json.loads(read_plain(path))
    except OSError as error:
        raise _unreadable(path, reason_of(error)) from None
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, error) from None
    if not isinstance(values, dict):
        raise _unreadable(path, "it does not hold a JSON object")
    return values


def skipped_images(*scores: Mapping[str, Any]) -> str:
    """Return how many corrupt images were skipped, such as "3 train, 1 test"."""
    counts = {
        split: sum(values.get(key) or 0 for values in scores) for split, key in SKIPPED.items()
    }
    return ", ".join(f"{count} {split}" for split, count in counts.items() if count)


def flat_options(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the options of nested settings by their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= (
            flat_options(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{key}": value}
        )
    return flat


def read_object(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file; an empty dict if `read_metrics` refuses it."""
    try:
        return read_metrics(path)
    except InputError:
        return {}


def _unreadable(path: Path, reason: object) -> InputError:
    return InputError(f"{path} cannot be read: {reason}. Delete its folder and repeat the run.")


def is_texts(value: Any) -> bool:
    """Return whether a value from a JSON file is a list of strings."""
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def finished_metrics(folder: Path) -> dict[str, Any]:
    """Return the metrics of a finished run that a table can show.

    Raises:
        InputError: metrics.json is not there or torn, one of its values has the wrong type, or it
            belongs to a meta-training.
    """
    path = folder / METRICS_FILE
    metrics = read_metrics(path)
    if metrics.get(KIND) == META:
        raise InputError(f"{folder}: is a meta-training, not a run of a method.")
    transfer = metrics.get("transfer") or {}
    checks = {key: _is_possible(key, value) for key, value in metrics.items()}
    checks |= {key: isinstance(metrics.get(key), str) for key in _TEXTS}
    checks |= {key: _is_number(key, metrics.get(key), int) for key in _COUNTS}
    checks |= {key: _is_number(key, metrics.get(key)) for key in _NUMBERS}
    checks["settings"] = isinstance(metrics.get("settings"), dict)
    for key in (*_OPTIONAL_NUMBERS, *(f"{ZERO_SHOT}{key}" for key in _OPTIONAL_NUMBERS)):
        if metrics.get(key) is not None:
            checks[key] = _is_number(key, metrics[key])
    checks["transfer"] = isinstance(transfer, dict) and all(
        isinstance(scores, dict)
        and _is_number("accuracy_percent", scores.get("accuracy_percent"))
        and all(_is_possible(key, value) for key, value in scores.items())
        for scores in transfer.values()
    )
    _refuse_invalid(path, metrics, checks)
    _check_lengths(path, metrics)
    return metrics


def finished_meta(folder: Path) -> dict[str, Any]:
    """Return the metrics of a finished meta-training.

    Raises:
        InputError: metrics.json is not there or torn, or a value that is shown has the wrong type.
    """
    path = folder / METRICS_FILE
    metrics = read_metrics(path)
    accuracy = "validation_accuracy_percent"
    checks = {key: _is_possible(key, value) for key, value in metrics.items()}
    checks |= {
        KIND: metrics.get(KIND) == META,
        "backbone": isinstance(metrics.get("backbone"), str),
    }
    checks |= {"sources": is_texts(metrics.get("sources"))}
    checks |= {"tasks": _is_number("tasks", metrics.get("tasks"), int)}
    if metrics.get(accuracy) is not None:
        checks[accuracy] = _is_number(accuracy, metrics[accuracy])
    _refuse_invalid(path, metrics, checks)
    return metrics


def _refuse_invalid(path: Path, metrics: Mapping[str, Any], checks: Mapping[str, bool]) -> None:
    """Raise InputError about the first key that is not valid."""
    for key, is_valid in checks.items():
        if not is_valid:
            shown = repr(metrics.get(key))[:80]
            raise InputError(f"{path}: {key} is {shown}. Delete its folder and repeat the run.")


def _check_lengths(path: Path, metrics: Mapping[str, Any]) -> None:
    """Refuse texts that are too long for a table: titles, datasets, and options with their names.

    Raises:
        InputError: naming the text.
    """
    try:
        texts = {key: metrics[key] for key in _TEXTS} | flat_options(metrics["settings"])
        texts |= dict.fromkeys(metrics.get("transfer") or ())
        lengths = {key: len(key) + len(str(value)) for key, value in texts.items()}
    except RecursionError:
        raise _unreadable(path, "its settings are nested too deeply") from None
    for key, length in lengths.items():
        if length > MAX_TEXT:
            raise _unreadable(path, f"{key[:80]} has {length} characters")


def number_of(values: Mapping[str, Any], name: str) -> float | None:
    """Return a number of a JSON object by its name; None if it is missing or impossible."""
    value: Any = values.get(name)
    return float(value) if _is_number(name, value) else None


def _is_number(name: str, value: Any, *types: type) -> bool:
    """Return whether a value is a number, and one that a number of that name can be."""
    return type(value) in (types or (int, float)) and _least(name) <= value <= _most(name)


def _is_possible(name: str, value: Any) -> bool:
    """Return whether a value is no number, or one that a number of that name can be."""
    return type(value) not in (int, float) or _is_number(name, value)


def _least(name: str) -> float:
    return -_LARGEST if name.endswith(_SIGNED) else 0


def _most(name: str) -> float:
    *_, kind, unit = ["", *re.split("[_.]", name)]
    limit = None if kind == "interval" else _LIMITS.get(unit)  # that of two tasks may be wide
    return _LARGEST - 1 if limit is None else limit + _ROUNDING


def read_columns(
    path: Path,
    *,
    whole: Sequence[str] = (),
    numbers: Sequence[str] = (),
    texts: Sequence[str] = (),
) -> Columns:
    """Return columns of a CSV file.

    Pandas is not used: it takes ten times as long for small files, and reads the class name "nan"
    as a number.

    Args:
        path: the file.
        whole: columns of whole numbers.
        numbers: columns of numbers; an empty cell is NaN.
        texts: columns of texts, returned as lists.

    Raises:
        InputError: the file is not there, has no row or is torn, or a column is missing or has
            values of another kind.
    """
    try:
        header, *rows = csv.reader(
            io.StringIO(read_plain(path, MAX_LIST_BYTES).decode(), newline=""), strict=True
        )
        columns = dict(zip(header, zip(*rows, strict=True), strict=True))
        found: Columns = {name: list(map(csv_text, columns[name])) for name in texts}
        found |= {name: np.array([*map(int, columns[name])], dtype=np.int64) for name in whole}
        for name in numbers:
            found[name] = np.array([float(cell or "nan") for cell in columns[name]])
        for name in (*whole, *numbers):
            values = found[name]
            wrong = (values < _least(name)) | (values > _most(name))
            if name.endswith(_SIGNED):  # a loss may become infinite; the run then ends
                wrong &= np.isfinite(values)
            if wrong.any():
                raise ValueError(f"{name} is {values[wrong][0]}")
    except OSError as error:
        raise _unreadable(path, reason_of(error)) from None
    except KeyError as error:
        raise _unreadable(path, f"it has no column {error}") from None
    except (ValueError, OverflowError, csv.Error) as error:
        raise _unreadable(path, f"it is not a complete table ({error})") from None
    return found


def columns_if_whole(path: Path, **kinds: Sequence[str]) -> Columns | None:
    """Return the same as `read_columns`, and None if that raises InputError."""
    try:
        return read_columns(path, **kinds)
    except InputError:
        return None
