"""progress.json: the progress of a run, for other processes such as `status`."""

import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from so_clip.errors import InputError, show_progress
from so_clip.system import atomic

PROGRESS_FILE = "progress.json"
TRAIN, EVALUATE = "train", "evaluate"  # stages
# `status` looks about this often; a step on a GPU is much shorter.
WRITE_EVERY_SECONDS = 3.0
# The most lines of a run into a pipe or file, and the shortest time between two of them.
_LINES, _LINE_SECONDS = 20, 1.0


class Progress:
    """Writes progress.json: step, max_steps, loss, seconds_left, stage, and the process.

    A run continues if the file cannot be written.

    Args:
        folder: the run's folder; None writes nothing.
        max_steps: the largest number of training steps; 0 if nothing is trained.
        overrides: of the run.
        check: raises an error if the folder is no longer in its place.
        prints: print lines to stderr during training, for a run without a progress bar.
        unit: what a step is, for these lines.
    """

    def __init__(
        self,
        folder: Path | None,
        max_steps: int,
        overrides: Sequence[str] = (),
        *,
        check: Callable[[], None] = lambda: None,
        prints: bool = False,
        unit: str = "step",
    ) -> None:
        self._unit = unit
        self._line_steps = -(-max_steps // _LINES) if prints and max_steps else 0
        self._folder, self._check = folder, check
        self._max_steps, self._overrides = max_steps, list(overrides)
        self._started_at = _now()
        self._stage, self._step = EVALUATE, 0
        self._loss: float | None = None
        self._first: tuple[int, float] | None = None  # first step of this process, its time
        self._written = -math.inf
        self._printed_at = time.monotonic()

    def train(self) -> None:
        """Record that training begins."""
        self._stage = TRAIN
        self._write()

    def evaluate(self) -> None:
        """Record that test images are classified, before or after training."""
        self._stage = EVALUATE
        self._write()

    def part(self) -> "Progress":
        """Return the progress of a part of this run. It only records that the run is alive."""
        return Progress(None, 0, check=self.tick)

    def tick(self) -> None:
        """Record that the run is alive, unless the file is recent."""
        if time.monotonic() - self._written >= WRITE_EVERY_SECONDS:
            self._write()

    def after_step(self, step: int, loss: float | None) -> None:
        """Record the state of training, unless the file is recent.

        Args:
            step: number of steps taken.
            loss: the last loss that was read from the device. None if there is none: reading one
                here would wait for the device.
        """
        self._step, self._loss = step, loss
        self._first = self._first or (step, time.monotonic())
        is_line = self._line_steps and step % self._line_steps == 0
        if is_line and time.monotonic() - self._printed_at >= _LINE_SECONDS:
            self._print()
        self.tick()

    def _print(self) -> None:
        self._printed_at = time.monotonic()
        parts = [f"{self._unit} {self._step} of {self._max_steps}"]
        parts += [] if self._loss is None else [f"loss {self._loss:.4f}"]
        left = self._seconds_left()
        parts += [f"{duration(left)} left"] if left else []
        show_progress(", ".join(parts))

    def _write(self) -> None:
        self._written = time.monotonic()
        values = {
            "step": self._step,
            "max_steps": self._max_steps,
            "loss": self._loss if self._loss is not None and math.isfinite(self._loss) else None,
            "started_at": self._started_at,
            "updated_at": _now(),
            "seconds_left": self._seconds_left(),
            "stage": self._stage,
            "pid": os.getpid(),
            "host": platform.node(),
            "overrides": self._overrides,
        }
        self._check()
        if self._folder is not None:
            with suppress(InputError):
                atomic.write_json(self._folder / PROGRESS_FILE, values)

    def _seconds_left(self) -> float | None:
        """Return the remaining seconds of training, at the speed of this process."""
        if self._first is None or self._step == self._first[0] or self._stage != TRAIN:
            return None
        first_step, first_time = self._first
        step_seconds = (time.monotonic() - first_time) / (self._step - first_step)
        return round(step_seconds * (self._max_steps - self._step), 1)


def duration(seconds: float) -> str:
    """Return seconds as text for people: 40 s, 12 min, 1 h 05 min, 2 d 3 h."""
    minutes = round(seconds / 60)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = minutes // 60
    return f"{hours // 24} d {hours % 24} h"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
