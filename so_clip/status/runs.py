"""The state of each run, from the files of its folder and from its lock, without torch."""

import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from so_clip.errors import InputError
from so_clip.results.progress import PROGRESS_FILE, TRAIN
from so_clip.results.run_files import (
    ADAPTER_FROM,
    ERROR_FILE,
    KIND,
    MAX_TEXT,
    META,
    METRICS_FILE,
    PROVENANCE_FILE,
    finished_meta,
    finished_metrics,
    is_texts,
    number_of,
    read_object,
    run_folders,
    skipped_images,
)
from so_clip.system.locks import is_locked
from so_clip.version import RESULTS_VERSION

RUNNING, FAILED, INTERRUPTED, MISSING, DONE = "running", "failed", "interrupted", "missing", "done"
WAITING = "waiting"  # a job of a running sweep that has not started yet
STARTING = "starting"  # the remark of a run that has not written its progress yet
STATES = (DONE, RUNNING, WAITING, FAILED, INTERRUPTED, MISSING)
# A run whose lock cannot be seen counts as ended if its progress is older than this.
SILENCE_SECONDS = 600
_HOST = platform.node()


@dataclass(frozen=True)
class Run:
    """One line of the table. Unknown values are None; times are seconds since 1970."""

    name: str
    state: str
    changed_at: float = 0.0
    step: int | None = None
    max_steps: int | None = None
    loss: float | None = None
    seconds_left: float | None = None
    accuracy_percent: float | None = None
    remark: str = ""
    overrides: tuple[str, ...] | None = None


def read_states(results_dir: Path, unreadable: list[str]) -> dict[str, Run]:
    """Return the runs below a folder by the paths of their folders.

    Args:
        results_dir: the folder.
        unreadable: gets one line for each folder that cannot be read.

    Raises:
        InputError: there is no such folder.
    """
    if not results_dir.is_dir():
        raise InputError(f"{results_dir}: there is no such folder. Give the one that holds runs.")
    runs = {}
    for folder in run_folders(results_dir, unreadable):
        path = Path(folder).relative_to(results_dir)
        name = (path.name and str(path)) or results_dir.name
        with suppress(OSError):  # removed meanwhile
            runs[folder] = replace(_read(Path(folder)), name=name)
    return runs


def _read(folder: Path) -> Run:
    """Return a folder's run with its state at this moment."""
    changed_at = folder.stat().st_mtime
    if (folder / METRICS_FILE).exists():
        run = _finished(folder, changed_at)
    elif (folder / ERROR_FILE).exists():
        run = _failed(folder, changed_at)
    else:
        return _unfinished(folder, changed_at)
    if is_locked(folder):  # a process repeats it
        return Run("", RUNNING, changed_at, remark=STARTING, overrides=run.overrides)
    return run


def _finished(folder: Path, changed_at: float) -> Run:
    is_meta = read_object(folder / METRICS_FILE).get(KIND) == META
    try:
        metrics = finished_meta(folder) if is_meta else finished_metrics(folder)
    except InputError as error:
        return Run("", FAILED, changed_at, remark=str(error))
    if is_meta:
        return _finished_meta(metrics, changed_at)
    provenance = read_object(folder / PROVENANCE_FILE)
    skipped = skipped_images(metrics)
    remarks = [f"corrupt images skipped: {skipped}"] if skipped else []
    if metrics.get(ADAPTER_FROM):
        remarks.append(f"evaluation of {str(metrics[ADAPTER_FROM])[:MAX_TEXT]}")
    if metrics.get("tasks"):
        remarks.append(f"mean over {str(metrics['tasks'])[:20]} tasks")
    version = provenance.get("results_version")
    if isinstance(version, int) and version != RESULTS_VERSION:
        older = "older" if version < RESULTS_VERSION else "newer"
        remarks.append(f"{older} results version ({version}): a sweep runs it again")
    steps = _whole(metrics, "steps")
    return Run(
        "",
        DONE,
        changed_at,
        step=steps,
        max_steps=steps,
        loss=number_of(metrics, "final_loss"),
        accuracy_percent=metrics["accuracy_percent"],
        remark="; ".join(remarks),
        overrides=_texts(provenance.get("overrides")),
    )


def _finished_meta(metrics: Mapping[str, Any], changed_at: float) -> Run:
    """Return a finished meta-training. Its accuracy is of validation, so it is a remark."""
    accuracy = number_of(metrics, "validation_accuracy_percent")
    remark = f"meta-training on {', '.join(metrics['sources'])}"[:MAX_TEXT]
    remark += "" if accuracy is None else f": {accuracy:.2f} % in validation"
    tasks = _whole(metrics, "tasks")
    return Run("", DONE, changed_at, step=tasks, max_steps=tasks, remark=remark)


def _failed(folder: Path, changed_at: float) -> Run:
    error = read_object(folder / ERROR_FILE)
    parts = [error.get("kind"), error.get("message", f"{ERROR_FILE} cannot be read.")]
    remark = " ".join(": ".join(str(part) for part in parts if part).split())
    return Run("", FAILED, changed_at, remark=remark, overrides=_texts(error.get("overrides")))


def _unfinished(folder: Path, changed_at: float) -> Run:
    """Return a run that is running or interrupted, by its lock and the age of its progress."""
    progress = read_object(folder / PROGRESS_FILE)
    stage, left = progress.get("stage"), number_of(progress, "seconds_left")
    remarks = [stage] if isinstance(stage, str) and stage != TRAIN else []
    updated_at = _timestamp(progress.get("updated_at"))
    silent_seconds = time.time() - (changed_at if updated_at is None else updated_at)
    left = None if left is None else max(0.0, left - max(0.0, silent_seconds))
    held = is_locked(folder)
    if held is None or (not held and progress.get("host", _HOST) != _HOST):
        held = silent_seconds < SILENCE_SECONDS  # locks of another machine may not be seen here
    if held and silent_seconds > SILENCE_SECONDS:
        remarks.append(f"no progress for {silent_seconds / 60:.0f} min")
    return Run(
        "",
        RUNNING if held else INTERRUPTED,
        changed_at,
        step=_whole(progress, "step"),
        max_steps=_whole(progress, "max_steps"),
        loss=number_of(progress, "loss"),
        seconds_left=left if held else None,
        remark=", ".join(remarks),
        overrides=_texts(progress.get("overrides")),
    )


def _whole(values: Mapping[str, Any], name: str) -> int | None:
    number = number_of(values, name)
    return int(number) if number is not None and number.is_integer() else None


def _texts(value: Any) -> tuple[str, ...] | None:
    return tuple(value) if is_texts(value) else None


def _timestamp(value: Any) -> float | None:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
