"""Predictions in the order of the test list, and what they add up to."""

import pytest
import torch

from so_clip.evaluate import Predictions, evaluate
from so_clip.precision import Precision
from tests.toy import CountReads, Toy, random_batches

CPU = torch.device("cpu")


def _evaluate(classifier: torch.nn.Module, sizes: list[int], precision: str = "fp32"):
    batches = random_batches(sizes, seed=1).batches
    predictions = evaluate(
        classifier,
        batches,
        image_count=sum(sizes),
        device=CPU,
        precision=Precision(precision, CPU),
        description="test",
    )
    return predictions, batches


@pytest.fixture
def toy() -> Toy:
    toy = Toy()
    torch.nn.init.normal_(toy.weight_KP, generator=torch.Generator().manual_seed(0))
    return toy


@pytest.mark.parametrize("sizes", [[7], [4, 4, 1]])
def test_rows_are_the_test_list_image_by_image(toy, sizes):
    predictions, batches = _evaluate(toy, sizes)
    labels, predicted, confidence = [], [], []
    for images_BCHW, labels_B in batches:
        for image_CHW, label in zip(images_BCHW, labels_B, strict=True):
            exponential_K = toy(image_CHW[None])[0].detach().exp()
            share_K = exponential_K / exponential_K.sum()
            labels.append(int(label))
            predicted.append(int(share_K.argmax()))
            confidence.append(float(share_K.max()))
    assert predictions.label_N.tolist() == labels
    assert predictions.predicted_N.tolist() == predicted
    assert predictions.confidence_N.tolist() == pytest.approx(confidence)
    right = sum(a == b for a, b in zip(labels, predicted, strict=True))
    assert predictions.accuracy_percent == pytest.approx(100 * right / len(labels))


@pytest.mark.parametrize(
    ("label", "predicted", "percent"),
    [([0, 1, 2, 1], [0, 1, 2, 0], 75.0), ([0], [0], 100.0), ([1, 1, 1], [0, 0, 2], 0.0)],
)
def test_accuracy_by_hand(label, predicted, percent):
    predictions = Predictions(torch.tensor(label), torch.tensor(predicted), torch.ones(len(label)))
    assert predictions.accuracy_percent == percent


def test_one_image_in_ten_thousand_is_seen_in_the_accuracy():
    label_N = torch.zeros(10_000, dtype=torch.int64)
    predicted_N = label_N.clone()
    predicted_N[3] = 1
    assert Predictions(label_N, predicted_N, label_N).accuracy_percent == pytest.approx(99.99)


def test_no_graph_is_built_and_weights_stay(toy):
    before = toy.weight_KP.detach().clone()
    predictions, _ = _evaluate(toy, [3])
    assert not predictions.confidence_N.requires_grad
    assert toy.weight_KP.grad is None
    assert torch.equal(toy.weight_KP, before)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", None), ("bf16", torch.bfloat16)])
def test_forward_passes_run_in_the_precision_and_shares_in_float32(toy, precision, dtype):
    seen = []
    toy.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    predictions, _ = _evaluate(toy, [3], precision)
    assert seen == [dtype or torch.float32]
    assert predictions.confidence_N.dtype == torch.float32


def test_results_stay_on_the_device_until_the_end(toy):
    with CountReads() as few:
        _evaluate(toy, [3, 3])
    with CountReads() as many:
        _evaluate(toy, [1] * 40)
    assert few == many == {"cpu": 2}
