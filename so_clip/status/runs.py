"""The state of each run, from the files of its folder and from its lock. Needs no torch.

A folder is read again only if it changed: every file is renamed into place, which changes the
folder's own time. A lock can end without such a change, so locks are checked every time.
"""

import math
import platform
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from so_clip.errors import InputError
from so_clip.results.progress import PROGRESS_FILE, TRAIN
from so_clip.results.run_files import (
    ERROR_FILE,
    METRICS_FILE,
    PROVENANCE_FILE,
    SKIPPED,
    finished_metrics,
    is_texts,
    read_object,
    run_folders,
)
from so_clip.system.locks import is_locked
from so_clip.version import RESULTS_VERSION

RUNNING, FAILED, INTERRUPTED, MISSING, DONE = "running", "failed", "interrupted", "missing", "done"
WAITING = "waiting"  # a job of a running sweep that has not started yet
STARTING = "starting"  # the remark of a run that has not written its progress yet
STATES = (DONE, RUNNING, WAITING, FAILED, INTERRUPTED, MISSING)
# A run whose lock cannot be seen counts as ended if its progress is older than this.
SILENCE_SECONDS = 600
# File times are coarse: a folder that changed this recently may change again at the same time.
_SETTLED_NS = 2_000_000_000
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


@dataclass(frozen=True)
class _Content:
    """The files of a folder when it was last read; `progress` is None for an ended run."""

    mtime_ns: int
    run: Run
    progress: dict[str, Any] | None


class RunFolders:
    """All runs below a folder. `read` reads the changed folders again.

    After each `read`, `unreadable` has one line for each folder that cannot be read.
    """

    def __init__(self, results_dir: Path) -> None:
        self.results_dir = results_dir
        self.unreadable: list[str] = []
        self._contents: dict[str, _Content] = {}

    def read(self) -> dict[str, Run]:
        """Return the runs by the paths of their folders.

        Raises:
            InputError: there is no such folder.
        """
        if not self.results_dir.is_dir():
            raise InputError(
                f"{self.results_dir}: there is no such folder. Give the one that holds runs."
            )
        self.unreadable.clear()
        before, self._contents = self._contents, {}
        runs = {}
        for folder in run_folders(self.results_dir, self.unreadable):
            try:
                content = _read(Path(folder), before.get(folder))
            except OSError:
                continue  # removed meanwhile
            self._contents[folder] = content
            path = Path(folder).relative_to(self.results_dir)
            name = (path.name and str(path)) or self.results_dir.name
            runs[folder] = replace(_now(Path(folder), content), name=name)
        return runs


def _read(folder: Path, before: _Content | None) -> _Content:
    now_ns, mtime_ns = time.time_ns(), folder.stat().st_mtime_ns
    if before is not None and before.mtime_ns == mtime_ns:
        return before
    settled_ns = mtime_ns if now_ns - mtime_ns > _SETTLED_NS else -1
    changed_at = mtime_ns / 1e9
    if (folder / METRICS_FILE).exists():
        return _Content(settled_ns, _finished(folder, changed_at), None)
    if (folder / ERROR_FILE).exists():
        return _Content(settled_ns, _failed(folder, changed_at), None)
    progress = read_object(folder / PROGRESS_FILE)
    return _Content(settled_ns, _unfinished(progress, changed_at), progress)


def _finished(folder: Path, changed_at: float) -> Run:
    try:
        metrics = finished_metrics(folder)
    except InputError as error:
        return Run("", FAILED, changed_at, remark=str(error))
    provenance = read_object(folder / PROVENANCE_FILE)
    skipped = [f"{count} {split}" for split, key in SKIPPED.items() if (count := metrics.get(key))]
    remarks = [f"corrupt images skipped: {', '.join(skipped)}"] if skipped else []
    version = provenance.get("results_version")
    if isinstance(version, int) and version != RESULTS_VERSION:
        older = "older" if version < RESULTS_VERSION else "newer"
        remarks.append(f"{older} results version ({version}): a sweep runs it again")
    steps = _whole(metrics.get("steps"))
    return Run(
        "",
        DONE,
        changed_at,
        step=steps,
        max_steps=steps,
        loss=number(metrics.get("final_loss")),
        accuracy_percent=metrics["accuracy_percent"],
        remark="; ".join(remarks),
        overrides=_texts(provenance.get("overrides")),
    )


def _failed(folder: Path, changed_at: float) -> Run:
    error = read_object(folder / ERROR_FILE)
    parts = [error.get("kind"), error.get("message", f"{ERROR_FILE} cannot be read.")]
    remark = " ".join(": ".join(str(part) for part in parts if part).split())
    return Run("", FAILED, changed_at, remark=remark, overrides=_texts(error.get("overrides")))


def _unfinished(progress: dict[str, Any], changed_at: float) -> Run:
    stage = progress.get("stage")
    return Run(
        "",
        INTERRUPTED,
        changed_at,
        step=_whole(progress.get("step")),
        max_steps=_whole(progress.get("max_steps")),
        loss=number(progress.get("loss")),
        seconds_left=number(progress.get("seconds_left")),
        remark=stage if isinstance(stage, str) and stage != TRAIN else "",
        overrides=_texts(progress.get("overrides")),
    )


def _now(folder: Path, content: _Content) -> Run:
    """Return a folder's run with its state at this moment, by its lock and the clock."""
    run, progress = content.run, content.progress
    held = is_locked(folder)
    if progress is None:  # done or failed, unless a process repeats it
        again = Run("", RUNNING, run.changed_at, remark=STARTING, overrides=run.overrides)
        return again if held else run
    updated_at = _timestamp(progress.get("updated_at"))
    silent_seconds = time.time() - (run.changed_at if updated_at is None else updated_at)
    if held is None or (not held and progress.get("host", _HOST) != _HOST):
        held = silent_seconds < SILENCE_SECONDS  # locks of another machine may not be seen here
    if not held:
        return replace(run, seconds_left=None)
    remarks = [run.remark] if run.remark else []
    if silent_seconds > SILENCE_SECONDS:
        remarks.append(f"no progress for {silent_seconds / 60:.0f} min")
    left = run.seconds_left
    left = None if left is None else max(0.0, left - max(0.0, silent_seconds))
    return replace(run, state=RUNNING, seconds_left=left, remark=", ".join(remarks))


def number(value: Any) -> float | None:
    """Return a finite number, and None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number larger than all floats
        return None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _texts(value: Any) -> tuple[str, ...] | None:
    return tuple(value) if is_texts(value) else None


def _timestamp(value: Any) -> float | None:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
