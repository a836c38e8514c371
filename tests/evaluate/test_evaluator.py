"""Predictions in the order of the test list, their accuracy, and the images encoded for them."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.attention import explicit_attention
from so_clip.data.batches import TestStream
from so_clip.data.examples import Example
from so_clip.data.transforms import TestPixels
from so_clip.evaluate.evaluator import Evaluator, Predictions, classify, encode
from so_clip.evaluate.feature_cache import FeatureCache
from so_clip.methods.weights import Weights
from so_clip.runtime.precision import Precision
from tests.helpers.small_models import small_backbone
from tests.helpers.toy import CountReads

CPU = torch.device("cpu")
PROMPTS = ["a photo of a dog.", "a photo of a cat.", "a drawing"]
COUNT = 21


class Noise:
    """Random images with a fixed seed; records the order in which they are read."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.read_so_far: list[str] = []

    def _pixels(self, path: str) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * self.seed + int(path))
        return torch.randint(256, (32, 32, 3), generator=generator, dtype=torch.uint8)

    def read(self, path: str) -> Image.Image:
        self.read_so_far.append(path)
        return Image.fromarray(self._pixels(path).numpy())

    def content(self, path: str) -> bytes:
        return self._pixels(path).numpy().tobytes()

    def missing(self, paths: Any) -> list[str]:
        return []


def _stream(batch_size: int = 5, seed: int = 0) -> TestStream:
    examples = [Example(str(number), number % 3) for number in range(COUNT)]
    return TestStream(Noise(seed), examples, TestPixels(32), batch_size, workers=0)


@pytest.fixture
def classifier() -> Classifier:
    backbone = small_backbone()
    explicit_attention(backbone.model)
    return Classifier(backbone, backbone.tokenize(PROMPTS))


def _evaluator(
    classifier: Classifier,
    folder: Path | None = None,
    precision: str = "fp32",
    stream: TestStream | None = None,
) -> Evaluator:
    cache = FeatureCache(folder) if folder else None
    weights, stream = classifier.backbone.weights_sha256, stream or _stream()
    return Evaluator(classifier, weights, stream, CPU, Precision(precision, CPU), cache)


def _runs(classifier: Classifier) -> Counter[str]:
    """Count the images and batches that the image tower encodes from now on."""
    runs = Counter[str]()
    encode_image = classifier.backbone.encode_image

    def counted(images_BCHW: Tensor) -> Tensor:
        runs.update(images=len(images_BCHW), batches=1)
        return encode_image(images_BCHW)

    classifier.backbone.encode_image = counted
    return runs


def _change(classifier: Classifier, encoder: str) -> None:
    """Open an encoder's weights and change them along one gradient."""
    opened = Weights(["mlp_in"], encoder)(classifier)
    images_BCHW, _ = next(iter(_stream()))
    (100 * classifier(images_BCHW).softmax(dim=1)[:, 0].sum()).backward()
    with torch.no_grad():
        for parameter in opened.values():
            parameter.add_(0.1 * parameter.grad.sign())


def _same(a: Predictions, b: Predictions) -> bool:
    names = ("label_N", "predicted_N", "confidence_N")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


@pytest.mark.parametrize("batch_size", [1, 5, 7, 100])
def test_predictions_are_in_the_order_of_the_test_list(classifier, batch_size):
    stream = _stream(batch_size)
    predictions = _evaluator(classifier, stream=stream).zero_shot()
    predicted, confidence = [], []
    with torch.no_grad():
        for image_1CHW, _ in _stream(1):
            exponential_K = classifier(image_1CHW)[0].exp()
            share_K = exponential_K / exponential_K.sum()
            predicted.append(int(share_K.argmax()))
            confidence.append(float(share_K.max()))
    assert predictions.label_N.tolist() == [number % 3 for number in range(COUNT)]
    assert predictions.predicted_N.tolist() == predicted
    assert predictions.confidence_N.tolist() == pytest.approx(confidence, rel=1e-4)
    right = sum(number % 3 == label for number, label in enumerate(predicted))
    assert predictions.accuracy_percent == pytest.approx(100 * right / COUNT)


@pytest.mark.parametrize(
    ("label", "predicted", "percent"),
    [([0, 1, 2, 1], [0, 1, 2, 0], 75.0), ([0], [0], 100.0), ([1, 1, 1], [0, 0, 2], 0.0)],
)
def test_accuracy_equals_a_count_by_hand(label, predicted, percent):
    predictions = Predictions(torch.tensor(label), torch.tensor(predicted), torch.ones(len(label)))
    assert predictions.accuracy_percent == percent


def test_one_image_in_ten_thousand_changes_the_accuracy():
    label_N = torch.zeros(10_000, dtype=torch.int64)
    predicted_N = label_N.clone()
    predicted_N[3] = 1
    assert Predictions(label_N, predicted_N, label_N).accuracy_percent == pytest.approx(99.99)


def test_many_images_are_classified_in_parts():
    image_ND = torch.randn(10_000, 4, generator=torch.Generator().manual_seed(0))
    rows = []

    def logits(image_BD: Tensor) -> Tensor:
        rows.append(len(image_BD))
        return image_BD

    predictions = classify(logits, image_ND, torch.zeros(10_000, dtype=torch.int64), CPU)
    assert sum(rows) == 10_000
    assert max(rows) < 10_000
    assert torch.equal(predictions.predicted_N, image_ND.argmax(dim=1))
    assert torch.allclose(predictions.confidence_N, image_ND.softmax(dim=1).amax(dim=1))


def test_training_works_after_evaluation_in_inference_mode(classifier):
    evaluator = _evaluator(classifier)
    image_ND = encode(
        classifier.backbone.encode_image, _stream(), CPU, Precision("fp32", CPU), None
    )
    evaluator.zero_shot()
    for tensor in (image_ND, classifier.classes()):
        assert not tensor.is_inference()
        assert not tensor.requires_grad
    for encoder in ("vision", "text", "both"):
        _change(classifier, encoder)
        evaluator.adapted()
        assert all(p.grad is not None for p in classifier.parameters() if p.requires_grad)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_only_the_image_tower_runs_in_half_precision(classifier, precision):
    seen: dict[str, torch.dtype] = {}
    model = classifier.backbone.model
    layers = {"vision": model.visual.transformer, "text": model.transformer}
    for tower, transformer in layers.items():
        transformer.resblocks[0].mlp.c_fc.register_forward_hook(
            lambda module, inputs, output, tower=tower: seen.update({tower: output.dtype})
        )
    predictions = _evaluator(classifier, precision=precision).zero_shot()
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    assert seen == {"vision": dtypes[precision], "text": torch.float32}
    assert predictions.confidence_N.dtype == torch.float32
    if precision != "fp32":
        exact = _evaluator(classifier).zero_shot()
        assert not torch.equal(predictions.confidence_N, exact.confidence_N)
        assert torch.allclose(predictions.confidence_N, exact.confidence_N, atol=0.02)


def test_results_move_to_the_cpu_only_after_the_last_batch(classifier):
    encode_image, reads_before = classifier.backbone.encode_image, []
    with CountReads() as reads:

        def counted(images_BCHW: Tensor) -> Tensor:
            reads_before.append(reads["cpu"] + reads["item"] + reads["tolist"])
            return encode_image(images_BCHW)

        encode(counted, _stream(5), CPU, Precision("fp32", CPU), None)
    assert reads_before == [0] * 5


def test_the_next_batches_are_decoded_during_encoding(classifier):
    images, ahead = Noise(), []
    examples = [Example(str(number), 0) for number in range(50)]
    stream = TestStream(images, examples, TestPixels(32), 5, workers=1)
    encode_image = classifier.backbone.encode_image

    def slow(images_BCHW: Tensor) -> Tensor:
        used = 5 * (len(ahead) + 1)
        for _ in range(500):  # a limit, in case decoding waits for encoding
            if len(images.read_so_far) >= min(used + 5, 50):
                break
            torch.rand(100, 100, generator=torch.Generator()).svd()
        ahead.append(len(images.read_so_far) - used)
        return encode_image(images_BCHW)

    encode(slow, stream, CPU, Precision("fp32", CPU), None)
    assert all(images >= 5 for images in ahead[:-1])


@pytest.mark.parametrize("encoder", ["vision", "text", "both"])
def test_images_are_encoded_again_only_if_the_image_tower_was_trained(classifier, encoder):
    Weights(["mlp_in"], encoder)(classifier)
    evaluator = _evaluator(classifier)
    runs = _runs(classifier)
    before = evaluator.zero_shot()
    _change(classifier, encoder)
    runs.clear()
    after = evaluator.adapted()
    assert runs["images"] == (0 if encoder == "text" else COUNT)
    assert not _same(before, after)
    fresh = Classifier(classifier.backbone, classifier.backbone.tokenize(PROMPTS))
    assert _same(after, _evaluator(fresh).zero_shot())


def test_without_a_cache_every_run_encodes(classifier):
    evaluator = _evaluator(classifier)
    runs = _runs(classifier)
    first, second = evaluator.zero_shot(), _evaluator(classifier).zero_shot()
    assert runs == {"images": 2 * COUNT, "batches": 10}
    assert _same(first, second)
    assert not evaluator.from_cache
    assert evaluator.seconds > 0


@pytest.mark.parametrize(
    ("precision", "encoder"), [("fp32", "vision"), ("fp32", "text"), ("bf16", "vision")]
)
def test_a_second_run_reads_the_features_and_predicts_the_same(
    classifier, tmp_path, precision, encoder
):
    without = _evaluator(classifier, precision=precision).zero_shot()
    first = _evaluator(classifier, tmp_path, precision)
    assert _same(first.zero_shot(), without)
    second = _evaluator(classifier, tmp_path, precision)
    Weights(["mlp_in"], encoder)(classifier)
    runs = _runs(classifier)
    assert _same(second.zero_shot(), without)
    assert (first.from_cache, second.from_cache) == (False, True)
    assert runs["images"] <= 8
    _change(classifier, encoder)
    adapted = second.adapted()
    assert not _same(adapted, without)
    assert _same(adapted, _evaluator(classifier, None, precision).zero_shot())


def test_cached_features_are_not_used_for_a_changed_tower(classifier, tmp_path, capsys):
    loaded = _evaluator(classifier, tmp_path)
    loaded.zero_shot()
    late = _evaluator(classifier, tmp_path)
    _change(classifier, "vision")
    assert _same(late.zero_shot(), _evaluator(classifier).zero_shot())
    assert not late.from_cache
    assert "not the features that this image tower computes" in capsys.readouterr().err


def test_watch_classifies_one_batch_in_inference_mode(classifier, tmp_path):
    class Watch:
        inside = False

        def __enter__(self) -> None:
            self.inside = True

        def __exit__(self, *error: object) -> None:
            self.inside = False

    watch = Watch()
    seen: list[tuple[bool, int, bool, torch.dtype]] = []
    classifier.backbone.model.visual.ln_pre.register_forward_hook(
        lambda module, inputs, output: seen.append(
            (watch.inside, len(output), torch.is_inference_mode_enabled(), module.weight.dtype)
        )
    )
    _evaluator(classifier, tmp_path).watch(watch)
    assert seen == [(True, 5, True, torch.float32)]
    assert not watch.inside
    assert not [*tmp_path.iterdir()]
