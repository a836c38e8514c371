"""Scores from kept logits: top-1, top-5, likelihood, Brier score and calibration. No torch.

Array names end in their shape: N test images, K classes.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from so_clip.results.logits_file import ModelLogits
from so_clip.results.scores import calibration_error, mean_class_accuracy

BIN_COUNTS = (10, 15, 20)
# Top-5 of five classes would always be right.
_TOP = 5
# Rows are taken in groups of about this many float64 logits: 32 MiB.
_GROUP = 2**22

Array = npt.NDArray[Any]


def logit_scores(
    model: ModelLogits, label_N: Array, temperature: float | None = None
) -> dict[str, float | None]:
    """Return all scores of a model on one test set.

    With p = softmax(logits / T) and y the label of an image, the scores that depend on T are means
    over images: the negative log-likelihood -log p_y, and the Brier score sum_k (p_k - [k = y])^2,
    from 0 to 2. The expected calibration error compares accuracy and confidence in equal bins; see
    `calibration_error`.

    Args:
        model: its kept logits.
        label_N: the labels, from 0.
        temperature: T; None for the model's own probabilities.

    Returns:
        Accuracies and calibration errors in percent. Top-5 is None for five or fewer classes.

    Source: Brier, Verification of Forecasts Expressed in Terms of Probability, Monthly Weather
        Review 78 (1950).
    """
    right_N = model.rank_N == 0
    nll_N, brier_N, confidence_N = _by_image(model.logits_NK, label_N, temperature or 1.0)
    if temperature is None:
        confidence_N = model.confidence_N.astype(np.float64)
    has_top = model.logits_NK.shape[1] > _TOP
    return {
        "accuracy_percent": 100.0 * float(right_N.mean()),
        "top5_accuracy_percent": 100.0 * float((model.rank_N < _TOP).mean()) if has_top else None,
        "mean_class_accuracy_percent": 100.0 * mean_class_accuracy(label_N, right_N),
        "negative_log_likelihood": float(nll_N.mean()),
        "brier_score": float(brier_N.mean()),
        **{
            f"expected_calibration_error_{bins}_bins_percent": 100.0
            * calibration_error(right_N, confidence_N, bins)
            for bins in BIN_COUNTS
        },
    }


def ensemble_accuracy(
    zero_shot: ModelLogits, adapted: ModelLogits, label_N: Array, weight: float
) -> float:
    """Return the accuracy of (1 - a) zero-shot logits + a adapted logits, in percent.

    This averages outputs. WiSE-FT (arXiv 2109.01903) averages weights, so its accuracy differs
    between the two ends.

    Args:
        zero_shot, adapted: the kept logits of both models.
        label_N: the labels, from 0.
        weight: a, the share of the adapted model, from 0 to 1.
    """
    right = 0
    for rows in row_groups(adapted.logits_NK):
        first_NK, second_NK = (
            model.logits_NK[rows].astype(np.float64) for model in (zero_shot, adapted)
        )
        mixed_NK = (1 - weight) * first_NK + weight * second_NK
        right += int((mixed_NK.argmax(axis=1) == label_N[rows]).sum())
    return 100.0 * right / len(label_N)


def probabilities(logits_NK: Array) -> Array:
    """Return softmax(logits) in float64."""
    logits_NK = logits_NK.astype(np.float64)
    weight_NK = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
    return np.asarray(weight_NK / weight_NK.sum(axis=1, keepdims=True))


def row_groups(logits_NK: Array) -> Iterator[slice]:
    """Yield groups of rows that fit into little memory as float64."""
    images, classes = logits_NK.shape
    rows = max(1, _GROUP // classes)
    yield from (slice(start, start + rows) for start in range(0, images, rows))


def _by_image(logits_NK: Array, label_N: Array, temperature: float) -> tuple[Array, Array, Array]:
    """Return negative log-likelihood, Brier score and confidence of each image."""
    parts = []
    for rows in row_groups(logits_NK):
        scaled_NK = logits_NK[rows].astype(np.float64) / temperature
        weight_NK = np.exp(scaled_NK)  # the largest logit is 0
        sum_N = weight_NK.sum(axis=1)
        own_N = np.take_along_axis(scaled_NK, label_N[rows, None], axis=1)[:, 0]
        squares_N = np.square(weight_NK).sum(axis=1) / np.square(sum_N)
        brier_N = squares_N - 2 * np.exp(own_N) / sum_N + 1
        parts.append((np.log(sum_N) - own_N, brier_N, 1 / sum_N))
    nll_N, brier_N, confidence_N = (np.concatenate(part) for part in zip(*parts, strict=True))
    return nll_N, brier_N, confidence_N
