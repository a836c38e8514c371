"""Test accuracy while a model is trained: to look at afterwards, and to choose nothing by."""

import time
from typing import Any

from so_clip.evaluate.evaluator import Evaluator
from so_clip.runtime.peak_memory import PeakMemory


class Curve:
    """Classifies the test split after every so many steps, with the model as it is just then.

    An adapter that does something at the end (`finish`) has not done it yet.

    Args:
        evaluator: of the classifier that is trained; None where it is never asked.
        every_steps: 0 for never.
        peak_memory: what watches the training, and not this.

    Attributes:
        rows: steps taken and accuracy in percent then.
        seconds: spent on it.
    """

    def __init__(
        self, evaluator: Evaluator | None, every_steps: int, peak_memory: PeakMemory
    ) -> None:
        self._evaluator, self._every_steps = evaluator, every_steps
        self._peak_memory = peak_memory
        self.rows: list[tuple[int, float]] = []
        self.seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the rows and the seconds."""
        return {"rows": [*self.rows], "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with them."""
        self.rows = [(step, accuracy_percent) for step, accuracy_percent in state_dict["rows"]]
        self.seconds = state_dict["seconds"]

    def after_step(self, step: int) -> None:
        """Measure, if it is time."""
        if self._evaluator and self._every_steps and step % self._every_steps == 0:
            started = time.perf_counter()
            with self._peak_memory.paused():
                accuracy_percent = self._evaluator.adapted().accuracy_percent
            self.rows.append((step, accuracy_percent))
            self.seconds += time.perf_counter() - started
