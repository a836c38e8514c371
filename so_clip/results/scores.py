"""Accuracy and calibration, from the columns of predictions.csv alone.

Array names end in their shape: N test images, C classes with at least one image, B bins.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

ECE_BINS = 15
# Prefixes of the scores of both models, and of the columns that they come from. A backbone without
# a text tower has no zero-shot columns, and None for their scores.
ZERO_SHOT, ADAPTED = "zero_shot_", ""
# The stop reason of a run that adapts nothing.
NOT_ADAPTED = "zero_shot"
# The value of `task` in metrics.json of a run on sentences.
SENTENCES = "sentences"

_SCORES = (
    "accuracy_percent",
    "mean_class_accuracy_percent",
    "expected_calibration_error_percent",
)

Columns = Mapping[str, Sequence[Any]]


def models_in(columns: Iterable[str]) -> tuple[str, ...]:
    """Return the prefixes of the models that columns of predictions.csv belong to."""
    return (ZERO_SHOT, ADAPTED) if f"{ZERO_SHOT}prediction" in columns else (ADAPTED,)


def scores(columns: Columns) -> dict[str, float | None]:
    """Return accuracy, mean class accuracy and calibration error of both models, in percent.

    Scores of a model without columns are None.

    Args:
        columns: of predictions.csv, as numbers or as the text in the file.

    Example:
        >>> scores(dict(label=[0, 0, 1], prediction=[0, 1, 1], confidence=[0.9, 0.6, 0.9],
        ...     zero_shot_prediction=[1, 1, 1], zero_shot_confidence=[0.9, 0.9, 0.9]))
    """
    label_N = _whole(columns["label"])
    values: dict[str, float | None] = {}
    for prefix in (ZERO_SHOT, ADAPTED):
        names = [f"{prefix}{score}" for score in _SCORES]
        if prefix not in models_in(columns):
            values |= dict.fromkeys(names)
            continue
        right_N = label_N == _whole(columns[f"{prefix}prediction"])
        confidence_N = np.asarray(columns[f"{prefix}confidence"]).astype(np.float64)
        shares = (
            float(right_N.mean()),
            mean_class_accuracy(label_N, right_N),
            calibration_error(right_N, confidence_N),
        )
        values |= {name: 100.0 * share for name, share in zip(names, shares, strict=True)}
    return values


def calibration_error(
    right_N: npt.NDArray[np.bool_], confidence_N: npt.NDArray[np.float64], bins: int = ECE_BINS
) -> float:
    """Return the expected calibration error, in [0, 1].

    The sum over all bins of |bin| / N * |accuracy in the bin - mean confidence in the bin|. Bins
    have equal width and include their upper edge, not their lower edge.

    Source: Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599, equation 3.
    """
    _, right_B, confidence_B = reliability(right_N, confidence_N, bins)
    return float(np.abs(right_B - confidence_B).sum() / len(confidence_N))


def reliability(
    right_N: npt.NDArray[np.bool_], confidence_N: npt.NDArray[np.float64], bins: int = ECE_BINS
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return for each bin the number of images, of right predictions, and the sum of confidences.

    Bins have equal width and include their upper edge, not their lower edge.
    """
    edges = np.arange(1, bins) / bins
    bin_N = np.digitize(confidence_N, edges, right=True)
    right_B = np.bincount(bin_N, weights=right_N, minlength=bins).astype(np.float64)
    confidence_B = np.bincount(bin_N, weights=confidence_N, minlength=bins).astype(np.float64)
    images_B = np.bincount(bin_N, minlength=bins).astype(np.int64)
    return images_B, right_B, confidence_B


def per_class(
    columns: Columns, class_names: Sequence[str], first_label: int = 0
) -> dict[str, list[Any]]:
    """Return the columns of per_class.csv: one row per class, without accuracy if it has no image.

    There are columns for the models in `columns` only.

    Args:
        columns: of predictions.csv.
        class_names: in label order.
        first_label: the label of the first class name.
    """
    label_N = _whole(columns["label"]) - first_label
    table: dict[str, list[Any]] = {
        "label": [first_label + index for index in range(len(class_names))],
        "name": list(class_names),
        "images": np.bincount(label_N, minlength=len(class_names)).tolist(),
    }
    for prefix in models_in(columns):
        right_N = label_N == _whole(columns[f"{prefix}prediction"]) - first_label
        cells: list[Any] = [""] * len(class_names)
        classes_C, _, accuracy_C = _by_class(label_N, right_N)
        for index, accuracy in zip(classes_C.tolist(), accuracy_C.tolist(), strict=True):
            cells[index] = 100.0 * accuracy
        table[f"{prefix}accuracy_percent"] = cells
    return table


def mean_class_accuracy(label_N: npt.NDArray[np.int64], right_N: npt.NDArray[np.bool_]) -> float:
    """Return the mean over classes of their accuracies, in [0, 1]. Classes need an image."""
    return float(_by_class(label_N, right_N)[2].mean())


def harmonic_mean(a: float, b: float) -> float:
    """Return 2 a b / (a + b), or 0 for two zeros."""
    return 2 * a * b / (a + b) if a + b else 0.0


def _by_class(
    label_N: npt.NDArray[np.int64], right_N: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the labels that occur, their numbers of images, and their accuracies in [0, 1]."""
    classes_C, class_N, images_C = np.unique(label_N, return_inverse=True, return_counts=True)
    right_C = np.bincount(class_N, weights=right_N, minlength=len(classes_C))
    return classes_C, images_C, right_C / images_C


def _whole(column: Sequence[Any]) -> npt.NDArray[np.int64]:
    return np.asarray(column).astype(np.int64)
