"""Test accuracy during training, for plots only; never used for model selection."""

import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from so_clip.evaluate.evaluator import Predictions
from so_clip.runtime.peak_memory import PeakMemory


class Classifies(Protocol):
    """An evaluator of the current model, on images or on sentences."""

    def adapted(self) -> Predictions:
        """Classify all test examples."""
        ...


@dataclass
class Curve:
    """Classifies the test split every few steps with the current model.

    The adapter's `finish` has not run yet, so the last row can differ from the final accuracy.

    Args:
        evaluator: of the trained classifier; None for no curve.
        every_steps: steps between two rows; 0 for no curve.
        peak_memory: measures training; paused during an evaluation.

    Attributes:
        rows: pairs of a step and the accuracy after it, in percent.
        seconds: spent on evaluation.
    """

    evaluator: Classifies | None
    every_steps: int
    peak_memory: PeakMemory
    rows: list[tuple[int, float]] = field(default_factory=list, init=False)
    seconds: float = field(default=0.0, init=False)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows and the seconds."""
        return {"rows": [*self.rows], "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the rows and the seconds."""
        self.rows = [(step, accuracy_percent) for step, accuracy_percent in state_dict["rows"]]
        self.seconds = state_dict["seconds"]

    def after_step(self, step: int) -> None:
        """Evaluate the model if a row is due after this step."""
        if self.evaluator and self.every_steps and step % self.every_steps == 0:
            started = time.perf_counter()
            with self.peak_memory.paused():
                accuracy_percent = self.evaluator.adapted().accuracy_percent
            self.rows.append((step, accuracy_percent))
            self.seconds += time.perf_counter() - started
