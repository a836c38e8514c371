"""Predictions for images that nobody labelled: files, PIL images or pixels.

Tensor names end in their shape: B images of a batch, K classes, T best classes, D embedding.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from tqdm import tqdm

from so_clip.clip.classifier import Classifier
from so_clip.data.batches import filled_ahead
from so_clip.errors import InputError
from so_clip.predict.pictures import Picture, Pictures, path_of
from so_clip.runtime.precision import Precision
from so_clip.system.machine import usable_cores

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
        batch_size: images per forward pass; the default is that of evaluations.
        workers: threads that decode; None: one per core; 0: the calling thread.

    Raises:
        InputError: the number of names is not the number of classes, or a number is too small.
    """

    classifier: Classifier
    class_names: Sequence[str]
    temperature: float | None = None
    precision: Precision | None = None
    batch_size: int = 256
    workers: int | None = None

    def __post_init__(self) -> None:
        if len(self.class_names) != self.classifier.class_count:
            raise InputError(
                f"class_names: {len(self.class_names)} names, but the classifier has "
                f"{self.classifier.class_count} classes. Give one name per class."
            )
        if self.batch_size < 1:
            raise InputError(f"batch_size={self.batch_size}: must be 1 or more.")
        if self.workers is not None and self.workers < 0:
            raise InputError(f"workers={self.workers}: must be 0 or more.")

    @property
    def device(self) -> torch.device:
        """The device of the classifier."""
        return self.classifier.backbone.mean.device

    def predict(
        self,
        pictures: Sequence[Picture],
        top: int = 5,
        *,
        keep_logits: bool = False,
        unread: Unread | None = None,
        progress: bool = False,
    ) -> Generator[Prediction, None, None]:
        """Yield the prediction of each image, in order, while threads decode the next ones.

        The memory does not depend on the number of images. Class embeddings are computed once.

        Args:
            pictures: any number of images.
            top: classes per image; at most all classes.
            keep_logits: also give the logits of all classes.
            unread: called with the place and the error of an image that cannot be read; the image
                is then left out. None: the first such error is raised.
            progress: show a bar on stderr, if it is a terminal.

        Raises:
            InputError: `top` is below 1, or an image cannot be read and `unread` is None.
        """
        if top < 1:
            raise InputError(f"top={top}: must be 1 or more.")
        return self._predict(pictures, top, keep_logits, unread, progress)

    def _predict(
        self,
        pictures: Sequence[Picture],
        top: int,
        keep_logits: bool,
        unread: Unread | None,
        progress: bool,
    ) -> Generator[Prediction, None, None]:
        given = Pictures(pictures, raises=unread is None)
        size, device = self.batch_size, self.device
        batches = filled_ahead(
            given.fill,
            len(pictures),
            self.classifier.backbone.image_size,
            size,
            usable_cores() if self.workers is None else self.workers,
            pin=device.type == "cuda" and torch.cuda.is_available(),
        )
        bar = tqdm(
            total=len(pictures),
            desc="predict",
            unit="image",
            dynamic_ncols=True,
            disable=None if progress else True,  # None: hidden without a terminal
        )
        with closing(batches), bar, self.classifier.held_classes():
            ranked = _one_ahead(partial(self._rank, top), batches)
            for start, batch in zip(count(0, size), ranked, strict=False):
                places = range(start, start + len(batch.logits_BK))
                rows = zip(places, *batch.on_host(), strict=True)
                for index, labels, confidences, logits_K in rows:
                    if unread is not None and index in given.errors:
                        unread(index, given.errors.pop(index))
                        continue
                    yield Prediction(
                        index,
                        path_of(pictures[index]),
                        tuple(labels),
                        tuple(self.class_names[label] for label in labels),
                        tuple(confidences),
                        logits_K if keep_logits else None,
                    )
                bar.update(len(places))

    @torch.inference_mode()
    def _rank(self, top: int, images_BCHW: Tensor) -> "_Ranked":
        """Return the best classes of a batch, on the device, which the host does not wait for."""
        with self._autocast():
            image_BD = self.classifier.backbone.encode_image(
                images_BCHW.to(self.device, non_blocking=True)
            )
        logits_BK = self.classifier.logits(image_BD.float()).float()
        # An evaluation predicts the first class with the highest softmax, which may round two
        # logits to one number. The others are ranked by logits: many softmax values are 0.
        best_B1 = logits_BK.softmax(dim=1).max(dim=1, keepdim=True).indices
        ranks_BK = logits_BK.scatter(1, best_B1, torch.inf)
        order_BK = ranks_BK.sort(dim=1, descending=True, stable=True).indices
        label_BT = order_BK[:, :top]
        confidence_BK = (logits_BK / (self.temperature or 1.0)).softmax(dim=1)
        return _Ranked(label_BT, confidence_BK.gather(1, label_BT), logits_BK)

    def _autocast(self) -> AbstractContextManager[object]:
        return nullcontext() if self.precision is None else self.precision.autocast()


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
