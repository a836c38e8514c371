"""The batch size of an evaluation: given, or chosen by the memory that its images need."""

import pytest
import torch

from so_clip.clip.classifier import Classifier
from so_clip.evaluate.batch_size import (
    DEFAULT,
    FREE_SHARE,
    LARGEST,
    SMALLEST,
    batch_size,
    bytes_per_image,
    fitting,
    forecast_size,
)
from so_clip.evaluate.evaluator import watch_batch
from so_clip.runtime.peak_memory import MIB, PeakMemory
from so_clip.runtime.precision import Precision
from tests.helpers.small_models import small_backbone

CPU = torch.device("cpu")
FP32 = Precision("fp32", CPU)


@pytest.fixture
def classifier() -> Classifier:
    backbone = small_backbone()
    return Classifier(backbone, backbone.tokenize(["a dog", "a cat"]))


@pytest.mark.parametrize("per_image", [1.0, 3e6, 1e8])
def test_the_largest_power_of_two_fits_into_half_of_the_memory(per_image):
    for size in (32, 64, 128, 256, 512, 1024):
        enough = size * per_image / FREE_SHARE
        assert fitting(enough, per_image) == size
        assert fitting(1.9 * enough, per_image) == size
        assert fitting(enough * 0.99, per_image) == max(SMALLEST, size // 2)
    assert fitting(0, per_image) == SMALLEST
    assert fitting(1e15, per_image) == LARGEST


def test_a_given_size_is_used_and_auto_is_the_default_on_a_cpu(classifier):
    assert batch_size(7, classifier, FP32, CPU) == 7
    assert batch_size("auto", classifier, FP32, CPU) == DEFAULT


@pytest.mark.parametrize(
    ("choice", "on_cuda", "size"), [(9, True, 9), ("auto", True, LARGEST), ("auto", False, 256)]
)
def test_a_forecast_takes_the_largest_size_on_a_gpu(choice, on_cuda, size):
    assert forecast_size(choice, on_cuda) == size


def test_the_memory_of_an_image_predicts_the_peak_of_large_batches(classifier):
    peaks = {}
    for count in (16, 64):
        peak = PeakMemory(classifier, None, CPU)
        images_BCHW = torch.zeros(count, 3, 32, 32, dtype=torch.uint8)
        with classifier.held_classes():
            watch_batch(classifier, images_BCHW, CPU, FP32, peak)
        peaks[count] = peak.result()["peak_memory_mib"] * MIB
    growth = (peaks[64] - peaks[16]) / 48
    # Three uint8 batches count here; the watched batch existed before.
    assert bytes_per_image(classifier, FP32, CPU) == pytest.approx(growth + 3 * 3 * 32**2, rel=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_automatic_batch_fits_on_a_gpu(classifier):
    device = torch.device("cuda")
    classifier = classifier.to(device)
    precision = Precision("fp32", device)
    size = batch_size("auto", classifier, precision, device)
    assert SMALLEST <= size <= LARGEST
    assert bytes_per_image(classifier, precision, device) > 3 * 3 * 32**2
