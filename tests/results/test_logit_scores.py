"""Scores from kept logits, against torchmetrics, scipy and one image at a time in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from so_clip.evaluate.evaluator import classify
from so_clip.results.logit_scores import BIN_COUNTS, ensemble_accuracy, logit_scores
from so_clip.results.logits_file import ModelLogits
from so_clip.results.scores import scores

torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
CPU = torch.device("cpu")


def drawn(seed: int, images: int, classes: int, scale: float):
    """Return labels, float32 logits, and what a run keeps of them."""
    generator = torch.Generator().manual_seed(seed)
    logits_NK = 25 + scale * torch.randn(images, classes, generator=generator)
    label_N = torch.randint(classes, (images,), generator=generator)
    found = classify(lambda image_BD: image_BD, logits_NK, label_N, CPU, keep_logits=True)
    assert found.kept is not None
    kept = found.kept
    parts = (kept.logits_NK, found.confidence_N, kept.rank_N)
    return label_N, logits_NK, found, ModelLogits(*(part.numpy() for part in parts))


@settings(max_examples=20)
@given(
    st.integers(0, 2**31),
    st.integers(1, 80),
    st.sampled_from([2, 5, 6, 30]),
    st.sampled_from([0.5, 4]),
    st.sampled_from([None, 0.3, 2.5]),
)
def test_scores_equal_the_oracles(seed, images, classes, scale, temperature):
    label_N, logits_NK, _, model = drawn(seed, images, classes, scale)
    found = logit_scores(model, label_N.numpy(), temperature)
    labels, exact_NK = label_N.numpy(), logits_NK.double().numpy() / (temperature or 1)
    own_N = log_softmax(exact_NK, axis=1)[range(images), labels]
    hot_NK = np.eye(classes)[labels]
    brier = np.square(softmax(exact_NK, axis=1) - hot_NK).sum(axis=1).mean()
    # float16 keeps eleven bits of the distance to the largest logit.
    close = {"rel": 2e-3, "abs": 2e-3}
    assert found["negative_log_likelihood"] == pytest.approx(-own_N.mean(), **close)
    assert found["brier_score"] == pytest.approx(brier, **close)
    probability_NK = torch.from_numpy(softmax(exact_NK, axis=1))

    def accuracy(average: str, top_k: int = 1) -> float:
        return 100 * float(
            torchmetrics.multiclass_accuracy(
                probability_NK, label_N, num_classes=classes, average=average, top_k=top_k
            )
        )

    assert found["accuracy_percent"] == pytest.approx(accuracy("micro"), abs=1e-4)
    if classes > 5:
        assert found["top5_accuracy_percent"] == pytest.approx(accuracy("micro", 5), abs=1e-4)
    else:
        assert found["top5_accuracy_percent"] is None


@pytest.mark.parametrize("bins", BIN_COUNTS)
@pytest.mark.parametrize("temperature", [None, 2.5])
def test_the_calibration_error_equals_that_of_torchmetrics(bins, temperature):
    label_N, logits_NK, _, model = drawn(3, 2000, 8, 2)
    found = logit_scores(model, label_N.numpy(), temperature)
    probability_NK = (logits_NK.double() / (temperature or 1)).softmax(dim=1)
    expected = torchmetrics.multiclass_calibration_error(
        probability_NK, label_N, num_classes=8, n_bins=bins, norm="l1"
    )
    # A confidence near the edge of a bin may change sides when its logits are rounded.
    close = pytest.approx(100 * float(expected), abs=1e-3 if temperature is None else 0.1)
    assert found[f"expected_calibration_error_{bins}_bins_percent"] == close


def test_unscaled_scores_equal_those_of_metrics_json():
    label_N, _, found, model = drawn(4, 500, 12, 3)
    columns = {
        f"{prefix}{name}": values.tolist()
        for prefix in ("", "zero_shot_")
        for name, values in (("prediction", found.predicted_N), ("confidence", found.confidence_N))
    }
    expected = scores({"label": label_N.tolist(), **columns})
    again = logit_scores(model, label_N.numpy())
    assert again["accuracy_percent"] == expected["accuracy_percent"]
    assert again["mean_class_accuracy_percent"] == expected["mean_class_accuracy_percent"]
    error = again["expected_calibration_error_15_bins_percent"]
    assert error == expected["expected_calibration_error_percent"]


def test_a_perfect_and_a_wrong_model_have_the_extreme_scores():
    label_N = np.array([0, 1, 2])
    sure_NK = (1e4 * (np.eye(3) - 1)).astype(np.float16)
    right = ModelLogits(sure_NK, np.ones(3, np.float32), np.zeros(3, np.int32))
    wrong = ModelLogits(sure_NK[[1, 2, 0]], np.ones(3, np.float32), np.ones(3, np.int32))
    assert logit_scores(right, label_N)["brier_score"] == 0
    assert logit_scores(right, label_N)["negative_log_likelihood"] == 0
    assert logit_scores(wrong, label_N)["brier_score"] == 2
    assert logit_scores(wrong, label_N)["expected_calibration_error_10_bins_percent"] == 100
    assert logit_scores(wrong, label_N)["negative_log_likelihood"] == 10_000


def test_an_ensemble_begins_and_ends_at_its_models_and_mixes_logits_between():
    label_N, one_NK, _, one = drawn(5, 400, 6, 2)
    other_NK = one_NK + torch.randn(400, 6, generator=torch.Generator().manual_seed(6))
    found = classify(lambda image_BD: image_BD, other_NK, label_N, CPU, keep_logits=True)
    assert found.kept is not None
    other = ModelLogits(found.kept.logits_NK.numpy(), one.confidence_N, found.kept.rank_N.numpy())
    for weight in (0, 0.3, 1):
        mixed_NK = (1 - weight) * one_NK.double() + weight * other_NK.double()
        exact = 100 * float((mixed_NK.argmax(dim=1) == label_N).double().mean())
        accuracy = ensemble_accuracy(one, other, label_N.numpy(), weight)
        assert accuracy == pytest.approx(exact, abs=0 if weight in (0, 1) else 0.3)
