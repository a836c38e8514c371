"""How far a run is, in a small file beside its results: for whoever watches from outside."""

import math
import os
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from so_clip.errors import InputError
from so_clip.system import atomic

PROGRESS_FILE = "progress.json"
TRAIN, EVALUATE = "train", "evaluate"  # stages
# Whoever watches looks about so often; a step on a GPU takes much less.
WRITE_EVERY_SECONDS = 3.0


class Progress:
    """Writes progress.json: step, max_steps, loss, seconds_left, stage, and who is at work.

    That it cannot be written is no reason to end a run.

    Args:
        folder: the run's; None: nothing is written.
        max_steps: at which training ends at the latest; 0 where nothing is trained.
        overrides: of the run, so that a run that is cut off can be repeated.
    """

    def __init__(self, folder: Path | None, max_steps: int, overrides: Sequence[str] = ()) -> None:
        self._folder = folder
        self._max_steps, self._overrides = max_steps, list(overrides)
        self._started_at = _now()
        self._stage, self._step = EVALUATE, 0
        self._loss: float | None = None
        self._first: tuple[int, float] | None = None  # the first step that was seen, and when
        self._written = -math.inf

    def train(self) -> None:
        """Say that training begins."""
        self._stage = TRAIN
        self._write()

    def evaluate(self) -> None:
        """Say that the test images' turn has come: before training, or after it."""
        self._stage = EVALUATE
        self._write()

    def tick(self) -> None:
        """Say that the run is alive, if it has not been said for a while."""
        if time.monotonic() - self._written >= WRITE_EVERY_SECONDS:
            self._write()

    def after_step(self, step: int, loss: float | None) -> None:
        """Say how far training is, if it has not been said for a while.

        Args:
            step: steps taken.
            loss: the last one that was read, if one was: this must not wait for a device.
        """
        self._step, self._loss = step, loss
        self._first = self._first or (step, time.monotonic())
        self.tick()

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
        if self._folder is not None:
            with suppress(InputError):
                atomic.write_json(self._folder / PROGRESS_FILE, values)

    def _seconds_left(self) -> float | None:
        """Return how long training will take yet, at the pace of this process."""
        if self._first is None or self._step == self._first[0] or self._stage != TRAIN:
            return None
        step, since = self._first
        pace = (time.monotonic() - since) / (self._step - step)
        return round(pace * (self._max_steps - self._step), 1)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
