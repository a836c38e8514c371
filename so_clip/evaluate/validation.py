"""The drawn validation images of a run. One temperature is fitted on them; they choose nothing."""

import time
from collections.abc import Callable

from so_clip.errors import InputError, note
from so_clip.evaluate.evaluator import Evaluator, Predictions
from so_clip.results.logits_file import Validation
from so_clip.results.scores import ADAPTED, ZERO_SHOT


class ValidationImages:
    """Classifies the drawn validation images, before and after adaptation.

    A run without such images, or with one that cannot be read, gets no temperature. A note says so.

    Args:
        evaluator: of the validation images; None if the draw has none.
    """

    def __init__(self, evaluator: Evaluator | None) -> None:
        self._evaluator = evaluator
        self._predictions: dict[str, Predictions] = {}
        self._refused = False
        self._fit_seconds = 0.0
        if evaluator is None:
            _note("the draw has no validation image")

    @property
    def seconds(self) -> float:
        """The seconds spent so far, also on the fit of the temperatures."""
        return self._fit_seconds + (self._evaluator.seconds if self._evaluator else 0.0)

    def zero_shot(self) -> None:
        """Classify the images with the loaded model."""
        if self._evaluator is not None:
            self._classify(ZERO_SHOT, self._evaluator.zero_shot)

    def adapted(self) -> Validation | None:
        """Classify the images with the adapted model; return the logits of both models.

        A backbone without a text tower has those of the adapted model only.
        """
        if self._evaluator is None or self._refused:
            return None
        self._classify(ADAPTED, self._evaluator.adapted)
        if ADAPTED not in self._predictions:
            return None
        validation = Validation(
            self._predictions[ADAPTED].label_N.numpy(),
            {
                prefix: predictions.kept.logits_NK.numpy()
                for prefix, predictions in self._predictions.items()
                if predictions.kept is not None
            },
        )
        started = time.perf_counter()
        _ = validation.temperatures  # computed here once, and kept
        self._fit_seconds = time.perf_counter() - started
        return validation

    def _classify(self, prefix: str, classify: Callable[[bool], Predictions | None]) -> None:
        try:
            found = classify(True)
            if found is not None:
                self._predictions[prefix] = found
        except InputError as error:
            self._refused = True
            _note(f"a validation image cannot be used: {error}")


def _note(reason: str) -> None:
    note(f"no temperature: {reason.rstrip('.')}. The run's confidences cannot be calibrated.")
