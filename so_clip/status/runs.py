"""The state of each run, told by the files of its folder and by its lock; torch is not needed.

A folder is read again only where it has changed: every file in it is renamed into place, which
changes the folder's own time. A lock that ends with its process leaves no trace there, so those are
asked for every time.
"""

import math
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from so_clip.errors import InputError
from so_clip.results.progress import PROGRESS_FILE
from so_clip.results.run_files import (
    ERROR_FILE,
    METRICS_FILE,
    SKIPPED,
    finished_metrics,
    is_run_folder,
    listing,
    read_object,
)
from so_clip.system.locks import LOCK_FILE, is_locked

RUNNING, FAILED, INTERRUPTED, MISSING, DONE = "running", "failed", "interrupted", "missing", "done"
WAITING = "waiting"  # a sweep that is at work will come to it
STARTING = "starting"  # the remark of a run that reads its data yet
STATES = (DONE, RUNNING, WAITING, FAILED, INTERRUPTED, MISSING)
# Where no lock can tell, a run that has said nothing for so long is no more.
SILENCE_SECONDS = 600
# Times of files are coarse: what has changed so lately may change again without a trace.
SETTLED_NS = 2_000_000_000
HOST = platform.node()


@dataclass(frozen=True)
class Run:
    """One run as a line of the table: unknown figures are None, times are seconds since 1970."""

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
class _Known:
    """What was last read of a folder, before its lock is asked for.

    `run` is None where it is no run's; `children` are the folders to look into.
    """

    mtime_ns: int
    run: Run | None = None
    progress: dict[str, Any] | None = None
    children: tuple[str, ...] = ()


@dataclass
class RunFolders:
    """All runs below a folder, read anew by `read` as far as they have changed.

    `unreadable` names, after each `read`, the folders that may not be entered.
    """

    results_dir: Path
    unreadable: list[str] = field(default_factory=list)
    _known: dict[str, _Known] = field(default_factory=dict)

    def read(self) -> dict[str, Run]:
        """Return the runs by their folders' paths.

        Raises:
            InputError: there is no such folder.
        """
        if not self.results_dir.is_dir():
            raise InputError(
                f"{self.results_dir}: there is no such folder. Give the one that holds runs."
            )
        self.unreadable.clear()
        before, self._known = self._known, {}
        return dict(self._below(str(self.results_dir), before))

    def _below(self, top: str, before: dict[str, _Known]) -> Iterator[tuple[str, Run]]:
        folders = [top]
        while folders:
            folder = folders.pop()
            try:
                known = _read_folder(folder, before.get(folder), is_top=folder == top)
            except FileNotFoundError:
                continue  # gone since
            except OSError as error:
                self.unreadable.append(f"{folder}: {error.strerror or error}.")
                continue
            self._known[folder] = known
            folders += known.children
            if known.run is not None:
                name = os.path.basename(top) if folder == top else os.path.relpath(folder, top)  # noqa: PTH119
                yield folder, replace(_now(known, folder), name=name)


def _read_folder(folder: str, before: _Known | None, is_top: bool) -> _Known:
    """Return what is in a folder, unread where its time says that nothing has changed."""
    asked_ns = time.time_ns()
    mtime_ns = os.stat(folder).st_mtime_ns  # noqa: PTH116
    if before is not None and before.mtime_ns == mtime_ns:
        return before
    names, below = listing(folder)
    settled = mtime_ns if asked_ns - mtime_ns > SETTLED_NS else -1
    path, changed_at = Path(folder), mtime_ns / 1e9
    if not is_top and names <= {LOCK_FILE}:  # claimed, perhaps, by a run that reads its data yet
        starting = Run("", RUNNING, changed_at, remark=STARTING)
        return _Known(-1, starting if is_locked(path) else None)
    if not is_run_folder(names, is_top):
        return _Known(settled, children=tuple(below))
    children = tuple(below) if is_top else ()
    if METRICS_FILE in names:
        return _Known(settled, _finished(path, changed_at), children=children)
    if ERROR_FILE in names:
        return _Known(settled, _failed(path, changed_at), children=children)
    progress = read_object(path / PROGRESS_FILE) if PROGRESS_FILE in names else {}
    return _Known(settled, _unfinished(progress, changed_at), progress, children)


def _finished(folder: Path, changed_at: float) -> Run:
    try:
        metrics = finished_metrics(folder)
    except InputError as error:
        return Run("", FAILED, changed_at, remark=str(error))
    steps, accuracy = _whole(metrics.get("steps")), number(metrics["accuracy_percent"])
    loss = number(metrics.get("final_loss"))
    skipped = [f"{count} {split}" for split, key in SKIPPED.items() if (count := metrics.get(key))]
    remark = f"corrupt images skipped: {', '.join(skipped)}" if skipped else ""
    return Run("", DONE, changed_at, steps, steps, loss, accuracy_percent=accuracy, remark=remark)


def _failed(folder: Path, changed_at: float) -> Run:
    error = read_object(folder / ERROR_FILE)
    message = " ".join(str(error.get("message", f"{ERROR_FILE} cannot be read.")).split())
    kind = str(error.get("kind", ""))
    remark = f"{kind}: {message}" if kind else message
    return Run("", FAILED, changed_at, remark=remark, overrides=texts(error.get("overrides")))


def _unfinished(progress: dict[str, Any], changed_at: float) -> Run:
    stage = progress.get("stage")
    return Run(
        "",
        INTERRUPTED,
        changed_at,
        _whole(progress.get("step")),
        _whole(progress.get("max_steps")),
        number(progress.get("loss")),
        number(progress.get("seconds_left")),
        remark=stage if isinstance(stage, str) and stage != "train" else "",
        overrides=texts(progress.get("overrides")),
    )


def _now(known: _Known, folder: str) -> Run:
    """Return a folder's run as its lock and the clock have it at this moment."""
    run, progress = known.run, known.progress
    assert run is not None
    if progress is None:  # done or failed, unless it is begun anew
        anew = Run("", RUNNING, run.changed_at, remark=STARTING, overrides=run.overrides)
        return anew if is_locked(Path(folder)) else run
    updated_at = _timestamp(progress.get("updated_at"))
    silent_seconds = time.time() - (run.changed_at if updated_at is None else updated_at)
    if not _is_running(folder, progress, silent_seconds):
        return replace(run, seconds_left=None)
    left = run.seconds_left
    remark = run.remark
    if silent_seconds > SILENCE_SECONDS:
        remark = ", ".join(filter(None, (remark, f"no word for {silent_seconds / 60:.0f} min")))
    left = None if left is None else max(0.0, left - max(0.0, silent_seconds))
    return replace(run, state=RUNNING, seconds_left=left, remark=remark)


def _is_running(folder: str, progress: dict[str, Any], silent_seconds: float) -> bool:
    """Whether a process is at work: the lock knows, but perhaps not what another machine does."""
    held = is_locked(Path(folder))
    if held is None or (not held and progress.get("host", HOST) != HOST):
        return silent_seconds < SILENCE_SECONDS
    return held


def number(value: Any) -> float | None:
    """Return a finite number, and None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number beyond all floats
        return None


def texts(value: Any) -> tuple[str, ...] | None:
    """Return a list of texts as a tuple, and None for anything else."""
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return tuple(value)
    return None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _timestamp(value: Any) -> float | None:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
