"""Predictions of a classifier on a test set, before and after adaptation.

Tensor names end in their shape: N test images, B images of a batch, K classes, D embedding.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from so_clip.clip.classifier import Classifier
from so_clip.data.batches import TestStream
from so_clip.errors import RunFailed
from so_clip.evaluate.feature_cache import FeatureCache, feature_key
from so_clip.runtime.copies import ON_DEVICE, moved_ahead
from so_clip.runtime.precision import Precision

# Embeddings that are classified together: with 1000 classes their logits take 16 MiB.
ROWS = 4096
# The largest float16 below 0 that no device rounds to 0, and the smallest finite float16.
_BELOW_ZERO, _LOWEST = -(2.0**-14), -65504.0
# Number of images whose cached features are compared with new ones, and the largest distance of
# their cosines from 1, by precision. A wrong activation function gives 0.01 or more.
PROBED = 8
# fp16_authors rounds the norms too.
ROUNDING = {"fp32": 1e-5, "bf16": 1e-3, "fp16": 1e-3, "fp16_authors": 3e-3}

Classes = Callable[[], AbstractContextManager[Any]]


def _no_tick() -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Predictions:
    """Predictions for the test images, in the test split's order, on the CPU."""

    label_N: Tensor
    predicted_N: Tensor
    confidence_N: Tensor  # softmax probability of the predicted class, in [0, 1]
    kept: "Kept | None" = None

    @property
    def accuracy_percent(self) -> float:
        """Top-1 accuracy over all images, in percent."""
        return 100.0 * (self.label_N == self.predicted_N).double().mean().item()

    def checked(self) -> "Predictions":
        """Return these predictions.

        Raises:
            RunFailed: a confidence is not finite, as after a last step that was too large.
        """
        if not self.confidence_N.isfinite().all():
            raise RunFailed(
                "the trained model's answers are not finite numbers: the last steps were too "
                "large. Lower optimizer.lr."
            )
        return self


@dataclass(frozen=True)
class Kept:
    """Logits to keep, on the CPU. See so_clip.results.logits_file.ModelLogits."""

    logits_NK: Tensor
    rank_N: Tensor


@dataclass(eq=False)
class Evaluator:
    """Classifies a test split before and after adaptation.

    It encodes images into embeddings, then classifies the embeddings. The embeddings of a frozen
    image tower are used again after adaptation and, from the cache, in other runs.

    Args:
        classifier: on `device`. Its logits must still be those of the loaded model.
        weights_sha256: of the loaded backbone.
        stream: the test split, in pinned memory if the device is CUDA.
        device: of the classifier.
        precision: of the image tower; class embeddings and logits are float32.
        cache: features of other runs; None for no cache.
        classes, adapted_classes: contexts in which the classifier has the split's classes, before
            and after adaptation, if these are not the classes that it was built with.
        columns: the classifier's labels of the split's classes, if these are some of its classes.
            Other classes are then not predicted.
        known_ND: image_ND of the loaded image tower, if a caller has it already.
        shows_bars: whether to show progress bars.

    Attributes:
        seconds: spent on evaluation so far.
        from_cache: whether the zero-shot features came from the cache.
        tick: called after each batch. A caller may set it; it must not wait for a device.
    """

    classifier: Classifier
    weights_sha256: str
    stream: TestStream
    device: torch.device
    precision: Precision
    cache: FeatureCache | None = None
    classes: Classes = nullcontext
    adapted_classes: Classes = nullcontext
    columns: Sequence[int] | None = None
    known_ND: Tensor | None = None
    shows_bars: bool = True
    seconds: float = field(default=0.0, init=False)
    from_cache: bool = field(default=False, init=False)
    tick: Callable[[], None] = _no_tick
    # Zero-shot features, and the versions of the image tower's parameters that made them.
    _image_ND: Tensor | None = field(default=None, init=False)
    _made_by: Any = field(default=None, init=False)

    def zero_shot(self, keep_logits: bool = False) -> Predictions | None:
        """Classify the test split with the loaded model.

        A backbone without a text tower has no classes yet: its features are only kept, if its image
        tower is frozen, and None is returned.
        """
        has_text, trains = self.classifier.backbone.has_text, self.classifier.trains("vision")
        with self._timed():
            if trains and not has_text:
                return None
            image_ND = self.loaded_features() if self.known_ND is None else self.known_ND
            self._image_ND = None if trains else image_ND
            self._made_by = self.classifier.versions("vision")
            if not has_text:
                return None
            with self.classes():
                return self._classify(image_ND, keep_logits)

    def adapted(self, keep_logits: bool = False) -> Predictions:
        """Classify the test split with the adapted model."""
        with self._timed():
            image_ND = self._image_ND
            # An adapter can change a tower that it does not train, such as SMAT's merge.
            if image_ND is None or self._made_by != self.classifier.versions("vision"):
                image_ND = self._encode(self.stream, "adapted")
            with self.adapted_classes():
                return self._classify(image_ND, keep_logits)

    def watch(self, peak_memory: AbstractContextManager[Any]) -> None:
        """Classify the first batch inside `peak_memory`: evaluation's memory without a cache."""
        images_BCHW, _ = next(iter(self._stream_of(self.stream.examples[: self.stream.batch_size])))
        watch_batch(self.classifier, images_BCHW, self.device, self.precision, peak_memory)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started

    def loaded_features(self) -> Tensor:
        """Return image_ND of the loaded image tower, from the cache if it has them."""
        make = partial(self._encode, self.stream, "zero-shot")
        if self.cache is None:
            return make()
        key = feature_key(
            self.classifier.backbone,
            self.weights_sha256,
            self.stream,
            self.device,
            self.precision.name,
        )
        images = len(self.stream.examples)
        image_ND, self.from_cache = self.cache.fetch(key, images, self._is_current, make)
        return image_ND

    def _is_current(self, image_ND: Tensor) -> bool:
        """Encode a few images, spread over the split, and compare them with cached features."""
        step = -(-len(image_ND) // PROBED)
        cached_PD = image_ND[::step]
        new_PD = self._encode(self._stream_of(self.stream.examples[::step]))
        if cached_PD.shape != new_PD.shape:
            return False
        cosine_P = (cached_PD * new_PD).sum(dim=1)
        return bool((cosine_P > 1 - ROUNDING[self.precision.name]).all())

    def _stream_of(self, examples: Any) -> TestStream:
        stream = self.stream
        return TestStream(
            stream.images, examples, stream.pixels, len(examples), workers=stream.workers
        )

    def _encode(self, stream: TestStream, description: str | None = None) -> Tensor:
        encode_image = self.classifier.backbone.encode_image
        description = description if self.shows_bars else None
        return encode(encode_image, stream, self.device, self.precision, description, self.tick)

    def _classify(self, image_ND: Tensor, keep_logits: bool) -> Predictions:
        label_N = torch.tensor([example.label for example in self.stream.examples])
        with self.classifier.held_classes():
            return classify(self._logits, image_ND, label_N, self.device, keep_logits)

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
    """Move one batch to the device and classify it, inside `peak_memory`.

    On CUDA this is done for all batches that an evaluation has on the device at the same time.
    """
    batches = [images_BCHW] * (ON_DEVICE if device.type == "cuda" else 1)
    with torch.inference_mode(), peak_memory, precision.autocast():
        for moved_BCHW in moved_ahead(batches, device):
            classifier(moved_BCHW)


def encode(
    encode_image: Callable[[Tensor], Tensor],
    stream: TestStream,
    device: torch.device,
    precision: Precision,
    description: str | None = None,
    tick: Callable[[], None] = _no_tick,
) -> Tensor:
    """Return image_ND of every image in the stream, float32 on the CPU.

    The device encodes one batch while the next one is copied and the host decodes further ones. The
    results stay on the device until the last batch, and move once.

    Args:
        encode_image: images_BCHW uint8 -> image_BD.
        stream: the images, in pinned memory if the device is CUDA.
        device: of `encode_image`.
        precision: autocast for the forward passes.
        description: title of the progress bar; None for no bar.
        tick: called after each batch.
    """
    image_ND: Tensor | None = None
    done = 0
    with (
        tqdm(
            total=len(stream.examples),
            desc=description,
            unit="image",
            dynamic_ncols=True,
            disable=None if description else True,  # None: hidden without a terminal
        ) as progress,
        torch.inference_mode(),
    ):
        for images_BCHW in moved_ahead((images_BCHW for images_BCHW, _ in stream), device):
            with precision.autocast():
                image_BD = encode_image(images_BCHW)
            if image_ND is None:
                image_ND = image_BD.new_empty(len(stream.examples), image_BD.shape[1])
            image_ND[done : done + len(image_BD)] = image_BD
            done += len(image_BD)
            progress.update(len(image_BD))
            tick()
    assert image_ND is not None, "an evaluation has images"
    # A copy outside inference mode, because autograd refuses its tensors in later training.
    return image_ND.to("cpu", torch.float32, copy=True)


@torch.inference_mode()
def classify(
    logits: Callable[[Tensor], Tensor],
    image_ND: Tensor,
    label_N: Tensor,
    device: torch.device,
    keep_logits: bool = False,
) -> Predictions:
    """Return the predictions for image embeddings. Results move to the CPU once, at the end.

    Args:
        logits: image_BD -> logits_BK.
        image_ND: on the CPU.
        label_N: on the CPU.
        device: of `logits`.
        keep_logits: also return the logits.
    """
    predicted, confidence, kept = [], [], []
    parts = zip(image_ND.to(device).split(ROWS), label_N.to(device).split(ROWS), strict=True)
    for image_BD, label_B in parts:
        logits_BK = logits(image_BD).float()
        top_B = logits_BK.softmax(dim=1).max(dim=1)
        predicted.append(top_B.indices)
        confidence.append(top_B.values)
        if keep_logits:
            kept.append(_kept(logits_BK, top_B.indices, label_B))
    return Predictions(
        label_N,
        torch.cat(predicted).cpu(),
        torch.cat(confidence).cpu(),
        Kept(*(torch.cat(parts).cpu() for parts in zip(*kept, strict=True))) if kept else None,
    )


def _kept(logits_BK: Tensor, predicted_B: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the float16 logits minus that of the predicted class, and the labels' ranks.

    float16 is finest near 0, so the classes near the predicted class lose least. The predicted
    class alone has 0, so rounding and equal logits never change a prediction.
    """
    index_B1 = predicted_B[:, None]
    gap_BK = logits_BK - logits_BK.gather(1, index_B1)
    gap_BK = gap_BK.clamp(_LOWEST, _BELOW_ZERO).scatter(1, index_B1, 0.0)
    rank_B = (logits_BK > logits_BK.gather(1, label_B[:, None])).sum(dim=1)
    rank_B = torch.where(predicted_B == label_B, 0, rank_B.clamp(min=1))
    return gap_BK.half(), rank_B.int()
