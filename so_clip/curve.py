"""Test accuracy while a model is trained: to look at afterwards, and to choose nothing by."""

import time

from so_clip.evaluate import Evaluator


class Curve:
    """Classifies the test split after every so many steps.

    Args:
        evaluator: of the classifier that is trained.
        every_steps: 0 for never.

    Attributes:
        rows: steps taken and accuracy in percent then.
        seconds: spent on it.
    """

    def __init__(self, evaluator: Evaluator, every_steps: int) -> None:
        self._evaluator, self._every_steps = evaluator, every_steps
        self.rows: list[tuple[int, float]] = []
        self.seconds = 0.0

    def after_step(self, step: int) -> None:
        """Measure, if it is time."""
        if self._every_steps and step % self._every_steps == 0:
            started = time.perf_counter()
            self.rows.append((step, self._evaluator.adapted().accuracy_percent))
            self.seconds += time.perf_counter() - started
