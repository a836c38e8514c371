"""The results of a run on a test set, and their files: predictions, scores, kept logits."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from so_clip.config.settings import Settings
from so_clip.data.run_data import Data, TestSet
from so_clip.evaluate.evaluator import Predictions
from so_clip.results.logits_file import (
    Keeps,
    KeptLogits,
    ModelLogits,
    Validation,
    logits_file,
    logits_kept,
)
from so_clip.results.run_files import PER_CLASS_FILE, PREDICTIONS_FILE
from so_clip.results.run_folder import RunFolder
from so_clip.results.scores import ADAPTED, ZERO_SHOT, per_class, scores


@dataclass(frozen=True)
class Outcome:
    """The predictions on one test set, before and after adaptation.

    Attributes:
        zero_shot: None for a backbone without a text tower.
    """

    test_set: TestSet
    zero_shot: Predictions | None
    adapted: Predictions

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of predictions.csv: labels of the dataset, and their names."""
        splits, first = self.test_set.splits, self.test_set.first_label
        numbers_N = {"label": self.adapted.label_N.tolist()}
        for prefix, predictions in self.by_model.items():
            numbers_N[f"{prefix}prediction"] = predictions.predicted_N.tolist()
        columns: dict[str, list[Any]] = {"path": [example.path for example in splits.test]}
        for name, classes_N in numbers_N.items():
            columns[name] = [number + first for number in classes_N]
            columns[f"{name}_name"] = [splits.class_names[number] for number in classes_N]
        for prefix, predictions in self.by_model.items():
            columns[f"{prefix}confidence"] = predictions.confidence_N.tolist()
        return columns

    @property
    def by_model(self) -> dict[str, Predictions]:
        """The predictions of each model, by the prefix of its scores."""
        both = {ZERO_SHOT: self.zero_shot, ADAPTED: self.adapted}
        return {prefix: found for prefix, found in both.items() if found is not None}

    def logits(
        self,
        validation: Validation | None,
        fingerprint: str,
        temperatures: Mapping[str, float | None],
        calibrated_on: int,
    ) -> KeptLogits | None:
        """Return the logits to keep, if there are any; see write_outcomes."""
        both = self.by_model
        if self.adapted is self.zero_shot:
            del both[ADAPTED]
        models = {
            prefix: ModelLogits(
                predictions.kept.logits_NK.numpy(),
                predictions.confidence_N.numpy(),
                predictions.kept.rank_N.numpy(),
            )
            for prefix, predictions in both.items()
            if predictions.kept is not None
        }
        if not models:
            return None
        return KeptLogits(
            self.adapted.label_N.numpy(),
            models,
            temperatures,
            calibrated_on=calibrated_on,
            images_sha256=images_sha256(self.test_set),
            run_fingerprint=fingerprint,
            validation=None if self.test_set.name else validation,
        )


def images_sha256(test_set: TestSet) -> str:
    """Return the SHA-256 of the paths and labels of a test set, in order."""
    lines = "".join(f"{path}\0{label}\0" for path, label in test_set.splits.test)
    return hashlib.sha256(lines.encode(errors="surrogatepass")).hexdigest()


def logits_to_keep(settings: Settings, data: Data) -> dict[str, Keeps]:
    """Return the models whose logits the run keeps, by the name of the test set.

    Raises:
        InputError: evaluation.keep_logits=true and the logits are too many.
    """
    validation_images = len(data.few_shot.val) if settings.adapts and data.few_shot else 0
    return {
        test_set.name: logits_kept(
            settings.evaluation.keep_logits,
            len(test_set.splits.test),
            0 if test_set.name else validation_images,
            len(test_set.splits.class_names),
            settings.adapts,
        )
        for test_set in data.test_sets
    }


def write_outcomes(
    outcomes: Sequence[Outcome],
    folder: RunFolder,
    validation: Validation | None = None,
    fingerprint: str = "",
    temperatures: Mapping[str, float | None] | None = None,
    calibrated_on: int = 0,
) -> dict[str, dict[str, float | None]]:
    """Write predictions, per-class scores and kept logits.

    Args:
        outcomes: of each test set.
        folder: of the run.
        validation: logits of the drawn validation images, if there are any.
        fingerprint: of the run.
        temperatures, calibrated_on: of both models, if there is no `validation`.

    Returns:
        The scores of each test set, by its name.
    """
    values = {}
    if validation is not None:
        temperatures, calibrated_on = validation.temperatures, len(validation.label_V)
    for outcome in outcomes:
        test_set, columns = outcome.test_set, outcome.columns()
        folder.write_columns(PREDICTIONS_FILE, columns, test_set.name)
        names, first = test_set.splits.class_names, test_set.first_label
        folder.write_columns(PER_CLASS_FILE, per_class(columns, names, first), test_set.name)
        values[test_set.name] = scores(columns)
        if logits := outcome.logits(validation, fingerprint, temperatures or {}, calibrated_on):
            folder.write_bytes(logits_file(test_set.name), logits.to_bytes())
    return values
