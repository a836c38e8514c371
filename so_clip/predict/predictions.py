"""Predictions for images without labels: files, PIL images or pixels.

Tensor names end in their shape: B images of a batch, K classes, T best classes, D embedding.
"""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from tqdm import tqdm

from so_clip.clip.classifier import Classifier
from so_clip.data.batches import filled_ahead
from so_clip.errors import InputError
from so_clip.predict.pictures import Picture, Pictures, path_of
from so_clip.runtime.copies import moved_ahead
from so_clip.runtime.precision import Precision
from so_clip.system.machine import usable_cores

# Images per forward pass of evaluations, and the most that is taken from an adapter file.
BATCH_SIZE, MOST_IN_A_BATCH = 256, 1024

Unread: TypeAlias = Callable[[int, InputError], None]


@dataclass(frozen=True)
class Prediction:
    """The classes with the highest confidences for one image, the highest first.

    Attributes:
        index: place of the image in the given list.
        path: of its file, as it was given; None for an image without a file.
        labels: indices of the classes.
        names: their names.
        confidences: their probabilities, softmax(logits / temperature), in [0, 1].
        logits_K: logits of all classes, float32 on the CPU, if they were asked for.
    """

    index: int
    path: str | None
    labels: tuple[int, ...]
    names: tuple[str, ...]
    confidences: tuple[float, ...]
    logits_K: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def label(self) -> int:
        """Index of the predicted class."""
        return self.labels[0]

    @property
    def name(self) -> str:
        """Name of the predicted class."""
        return self.names[0]

    @property
    def confidence(self) -> float:
        """Confidence of the predicted class."""
        return self.confidences[0]


@dataclass(eq=False)
class Predictor:
    r"""Classifies images with a classifier, as the evaluation of a run does.

        p_k = softmax(logits / temperature)_k

    The same pixels, batch size and precision give the logits of an evaluation, so the predicted
    classes are equal too. The temperature changes confidences only.

    Args:
        classifier: on its device, with its classes.
        class_names: by label.
        temperature: divides the logits; None: 1, and confidences are not calibrated.
        precision: of the image tower; None: fp32.
        top: classes per image; at most all classes.
        batch_size: images per forward pass; the default is that of evaluations.
        workers: threads that decode; None: one per core; 0: the calling thread.
        keep_logits: also give the logits of all classes.

    Raises:
        InputError: the number of names is not the number of classes, or a number is too small.
    """

    classifier: Classifier
    class_names: Sequence[str]
    temperature: float | None = None
    precision: Precision | None = None
    top: int = 5
    batch_size: int = BATCH_SIZE
    workers: int | None = None
    keep_logits: bool = False

    def __post_init__(self) -> None:
        if len(self.class_names) != self.classifier.class_count:
            raise InputError(
                f"class_names: {len(self.class_names)} names, but the classifier has "
                f"{self.classifier.class_count} classes. Give one name per class."
            )
        for name, least in (("top", 1), ("batch_size", 1), ("workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name}={value}: must be {least} or more.")

    @property
    def device(self) -> torch.device:
        """The device of the classifier."""
        return self.classifier.backbone.mean.device

    def predict(
        self, pictures: Sequence[Picture], unread: Unread | None = None, progress: bool = False
    ) -> Generator[Prediction, None, None]:
        """Yield the prediction of each image, in order, while threads decode the next ones.

        The memory does not depend on the number of images. Class embeddings are computed once.

        Args:
            pictures: any number of images.
            unread: called with the place and the error of an image that cannot be read; the image
                is then left out. None: the first such error is raised.
            progress: show a bar on stderr, if it is a terminal.

        Raises:
            InputError: an image cannot be read, and `unread` is None.
        """
        with closing(self.batches(pictures, unread, progress)) as batches:
            for predictions in batches:
                yield from predictions

    def batches(
        self, pictures: Sequence[Picture], unread: Unread | None = None, progress: bool = False
    ) -> Generator[list[Prediction], None, None]:
        """Yield the predictions of `predict`, batch by batch."""
        pixels, size = self.classifier.backbone.pixels, self.batch_size
        given = Pictures(pictures, pixels, raises=unread is None)
        filled = filled_ahead(
            given.fill,
            len(pictures),
            pixels.image_size,
            size,
            usable_cores() if self.workers is None else self.workers,
            pin=self.device.type == "cuda" and torch.cuda.is_available(),
        )
        bar = tqdm(
            total=len(pictures),
            desc="predict",
            unit="image",
            dynamic_ncols=True,
            disable=None if progress else True,  # None: hidden without a terminal
        )
        with closing(filled), bar, self.classifier.held_classes():
            moved = moved_ahead(filled, self.device)
            for start, ranked in zip(count(0, size), _one_ahead(self._rank, moved), strict=False):
                places = range(start, start + len(ranked.logits_BK))
                errors = {place: given.errors.pop(place, None) for place in places}
                for place, error in errors.items():
                    if error is not None and unread is not None:
                        unread(place, error)
                rows = zip(places, *ranked.on_host(), strict=True)
                yield [self._prediction(pictures, *row) for row in rows if errors[row[0]] is None]
                bar.update(len(places))

    def _prediction(
        self,
        pictures: Sequence[Picture],
        index: int,
        labels: list[int],
        confidences: list[float],
        logits_K: Tensor,
    ) -> Prediction:
        if math.isnan(confidences[0]):
            place = path_of(pictures[index]) or f"image {index}"
            raise InputError(
                f"{place}: its logits are not finite numbers. "
                "The adapter is damaged, or needs precision fp32."
            )
        names = tuple(self.class_names[label] for label in labels)
        kept_K = logits_K if self.keep_logits else None
        path = path_of(pictures[index])
        return Prediction(index, path, tuple(labels), names, tuple(confidences), kept_K)

    @torch.inference_mode()
    def _rank(self, images_BCHW: Tensor) -> "_Ranked":
        """Return the best classes of a batch, on the device, which the host does not wait for."""
        with self._autocast():
            image_BD = self.classifier.backbone.encode_image(images_BCHW)
        logits_BK = self.classifier.logits(image_BD.float()).float()
        # An evaluation predicts the first class with the highest softmax. The softmax may round two
        # logits to one number. The others are ranked by logits: many softmax values are 0.
        best_B1 = logits_BK.softmax(dim=1).max(dim=1, keepdim=True).indices
        ranks_BK = logits_BK.scatter(1, best_B1, torch.inf)
        order_BK = ranks_BK.sort(dim=1, descending=True, stable=True).indices
        label_BT = order_BK[:, : self.top]
        confidence_BK = (logits_BK / (self.temperature or 1.0)).softmax(dim=1)
        return _Ranked(label_BT, confidence_BK.gather(1, label_BT), logits_BK)

    def _autocast(self) -> AbstractContextManager[object]:
        return nullcontext() if self.precision is None else self.precision.autocast()


def evaluation_batch_size(settings: Mapping[str, Any]) -> int:
    """Return the batch size of a run's evaluation, so that logits are equal bit for bit.

    Args:
        settings: of the run, as its adapter file has them; empty for a file of another origin.
    """
    evaluation = settings.get("evaluation")
    size = evaluation.get("batch_size") if isinstance(evaluation, Mapping) else None
    # The file may come from anyone.
    return size if type(size) is int and 0 < size <= MOST_IN_A_BATCH else BATCH_SIZE


class _Ranked(NamedTuple):
    """The best classes of each image of a batch."""

    label_BT: Tensor
    confidence_BT: Tensor
    logits_BK: Tensor

    def on_host(self) -> tuple[list[list[int]], list[list[float]], Tensor]:
        """Return labels, confidences and logits in host memory."""
        return self.label_BT.tolist(), self.confidence_BT.tolist(), self.logits_BK.cpu()


def _one_ahead(
    function: Callable[[Tensor], _Ranked], batches: Iterable[Tensor]
) -> Iterator[_Ranked]:
    """Yield the results of a function, each after the call for the next batch.

    A GPU works on one batch while the host takes the results of the batch before.
    """
    held: _Ranked | None = None
    for batch in batches:
        before, held = held, function(batch)
        if before is not None:
            yield before
    if held is not None:
        yield held
