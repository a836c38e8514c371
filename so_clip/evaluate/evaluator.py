"""Predictions over a test set, and the figures that follow from them.

Tensor names end in their shape: N test images, B images of a batch, K classes, D embedding.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from so_clip.clip.classifier import Classifier
from so_clip.data.batches import TestStream
from so_clip.evaluate.feature_cache import FeatureCache, feature_key
from so_clip.runtime.precision import Precision

# Embeddings that become logits at once: 1000 classes take 16 MiB.
ROWS = 4096
# Images by which kept features are compared with those of the tower at hand, and how far their
# cosines may be from 1 in float32 and in half precision. A wrong activation is off by 0.01 or more.
PROBED = 8
ROUNDING = {"fp32": 1e-5, "bf16": 1e-3, "fp16": 1e-3}

Classes = Callable[[], AbstractContextManager[Any]]


def _nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Predictions:
    """One row per test image, in the test split's order, on the CPU."""

    label_N: Tensor
    predicted_N: Tensor
    confidence_N: Tensor  # softmax probability of the predicted class, in [0, 1]

    @property
    def accuracy_percent(self) -> float:
        """Top-1 accuracy over all images, in percent."""
        return 100.0 * (self.label_N == self.predicted_N).double().mean().item()


class Evaluator:
    """Classifies a test split before and after adaptation, and encodes its images once if it can.

    Images become embeddings, then embeddings become logits. So the embeddings of an image tower
    that nothing trains serve again: after the adaptation, and, kept in a cache, in other runs.

    Args:
        classifier: on `device`, as loaded; its adapter must not have changed what it computes yet.
        weights_sha256: of its backbone, as loaded.
        stream: the test split, pinned where the device is CUDA.
        device: where the classifier lives.
        precision: of the image tower; class embeddings and logits are float32.
        cache: where the features of other runs are; None to keep none.
        classes, adapted_classes: contexts in which the classifier tells the split's classes apart,
            before adaptation and after it, where they are not its own.
        columns: the labels that the split's classes have in the classifier, where they are some of
            its own; others are no candidates then.

    Attributes:
        seconds: spent on evaluation so far.
        from_cache: whether the zero-shot features came from the cache.
        tick: called after each batch, for whoever sets it; it must not wait for a device.
    """

    def __init__(
        self,
        classifier: Classifier,
        weights_sha256: str,
        stream: TestStream,
        device: torch.device,
        precision: Precision,
        cache: FeatureCache | None = None,
        classes: Classes = nullcontext,
        adapted_classes: Classes = nullcontext,
        columns: Sequence[int] | None = None,
    ) -> None:
        self.classifier = classifier
        self.weights_sha256 = weights_sha256
        self.stream = stream
        self.device = device
        self.precision = precision
        self.cache = cache
        self.classes, self.adapted_classes, self.columns = classes, adapted_classes, columns
        self.seconds = 0.0
        self.from_cache = False
        self.tick: Callable[[], None] = _nothing
        self._image_ND: Tensor | None = None

    def zero_shot(self) -> Predictions:
        """Classify the test split with the model as it was loaded."""
        with self._timed():
            image_ND = self._loaded_features()
            self._image_ND = None if self.classifier.trains("vision") else image_ND
            with self.classes():
                return self._classify(image_ND)

    def adapted(self) -> Predictions:
        """Classify the test split with the model as it has become."""
        with self._timed():
            image_ND = self._image_ND
            if image_ND is None:
                image_ND = self._encode(self.stream, "adapted")
            with self.adapted_classes():
                return self._classify(image_ND)

    def watch(self, peak_memory: AbstractContextManager[Any]) -> None:
        """Classify the first batch inside `peak_memory`: what evaluation takes, cache or none."""
        images_BCHW, _ = next(iter(self._part(self.stream.examples[: self.stream.batch_size])))
        watch_batch(self.classifier, images_BCHW, self.device, self.precision, peak_memory)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started

    def _loaded_features(self) -> Tensor:
        make = partial(self._encode, self.stream, "zero-shot")
        if self.cache is None:
            return make()
        backbone, stream = self.classifier.backbone, self.stream
        name = self.precision.name
        key = feature_key(backbone, self.weights_sha256, stream, self.device, name)
        image_ND, self.from_cache = self.cache.fetch(key, len(stream.examples), self._fits, make)
        return image_ND

    def _fits(self, image_ND: Tensor) -> bool:
        """Encode a few images, spread over the split, and compare them with what was kept."""
        step = -(-len(image_ND) // PROBED)
        kept_PD = image_ND[::step]
        made_PD = self._encode(self._part(self.stream.examples[::step]))
        if kept_PD.shape != made_PD.shape:
            return False
        cosine_P = (kept_PD * made_PD).sum(dim=1)
        return bool((cosine_P > 1 - ROUNDING[self.precision.name]).all())

    def _part(self, examples: Any) -> TestStream:
        stream = self.stream
        return TestStream(
            stream.images, examples, stream.image_size, len(examples), workers=stream.workers
        )

    def _encode(self, stream: TestStream, description: str | None = None) -> Tensor:
        encode_image = self.classifier.backbone.encode_image
        return encode(encode_image, stream, self.device, self.precision, description, self.tick)

    def _classify(self, image_ND: Tensor) -> Predictions:
        label_N = torch.tensor([example.label for example in self.stream.examples])
        with self.classifier.held_classes():
            return classify(self._logits, image_ND, label_N, self.device)

    def _logits(self, image_BD: Tensor) -> Tensor:
        self.tick()
        logits_BK = self.classifier.logits(image_BD)
        return logits_BK if self.columns is None else logits_BK[:, list(self.columns)]


def watch_batch(
    classifier: Classifier,
    images_BCHW: Tensor,
    device: torch.device,
    precision: Precision,
    peak_memory: AbstractContextManager[Any],
) -> None:
    """Classify one batch inside `peak_memory`, from the moment it moves to the device."""
    with torch.inference_mode(), peak_memory, precision.autocast():
        classifier(images_BCHW.to(device, non_blocking=True))


def encode(
    encode_image: Callable[[Tensor], Tensor],
    stream: TestStream,
    device: torch.device,
    precision: Precision,
    description: str | None = None,
    tick: Callable[[], None] = _nothing,
) -> Tensor:
    """Return image_ND float32 on the CPU, of every image in the stream.

    Nothing is waited for before the last batch, so that a device encodes one batch while the next
    ones are being decoded.

    Args:
        encode_image: images_BCHW uint8 -> image_BD.
        stream: the images, pinned where the device is CUDA.
        device: where `encode_image` computes.
        precision: autocast for the forward passes.
        description: title of the progress bar; None shows none.
        tick: called after each batch.
    """
    parts = []
    with (
        tqdm(
            total=len(stream.examples),
            desc=description,
            unit="image",
            dynamic_ncols=True,
            disable=None if description else True,  # None: where nobody would see it move
        ) as progress,
        torch.inference_mode(),
    ):
        for images_BCHW, _ in stream:
            with precision.autocast():
                parts.append(encode_image(images_BCHW.to(device, non_blocking=True)))
            progress.update(len(images_BCHW))
            tick()
    # Outside of inference mode, whose tensors could take no part in training later on.
    return torch.cat([part.cpu() for part in parts]).float()


@torch.inference_mode()
def classify(
    logits: Callable[[Tensor], Tensor], image_ND: Tensor, label_N: Tensor, device: torch.device
) -> Predictions:
    """Return the predictions for embedded images; results stay on the device until the last.

    Args:
        logits: image_BD -> logits_BK.
        image_ND: on the CPU.
        label_N: on the CPU.
        device: where `logits` computes.
    """
    predicted, confidence = [], []
    for image_BD in image_ND.split(ROWS):
        top_B = logits(image_BD.to(device)).float().softmax(dim=1).max(dim=1)
        predicted.append(top_B.indices)
        confidence.append(top_B.values)
    return Predictions(label_N, torch.cat(predicted).cpu(), torch.cat(confidence).cpu())
