"""A few-shot task and the classifiers of its classes.

Tensor names end in their shape: S few-shot images, Q query images, B images of either, C H W
pixels, N classes, D embedding.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.smat.options import Head

# The factor of cosines with prototypes, as in the released code.
PROTOTYPE_SCALE = 10.0


@dataclass(frozen=True)
class Task:
    """The images of a task, on the device of the model.

    Attributes:
        images_SCHW, labels_S: few-shot images, uint8, and their classes from 0 to N - 1.
        images_QCHW, labels_Q: query images.
        class_ND: unit-length text embeddings of the classes, of the frozen text tower; None for an
            encoder without text.
        classes: N.
    """

    images_SCHW: Tensor
    labels_S: Tensor
    images_QCHW: Tensor
    labels_Q: Tensor
    class_ND: Tensor | None
    classes: int


def class_means(image_BD: Tensor, labels_B: Tensor, classes: int) -> Tensor:
    """Return the mean embedding of each class, prototype_ND."""
    one_hot_BN = F.one_hot(labels_B, classes).to(image_BD.dtype)
    counts_N1 = one_hot_BN.sum(dim=0).clamp(min=1).unsqueeze(1)
    return (one_hot_BN.T @ image_BD) / counts_N1


def task_logits(
    head: Head,
    image_BD: Tensor,
    prototype_ND: Tensor | None,
    class_ND: Tensor | None,
    text_scale: float,
) -> Tensor:
    """Return logits_BN.

        text       text_scale · cosine(image, class text)
        prototype  10 · cosine(image, class prototype)
        mean       the mean of both

    Args:
        head: one of these.
        image_BD: unit-length embeddings.
        prototype_ND: class means, for prototype and mean; see `class_means`.
        class_ND: unit-length text embeddings, for text and mean.
        text_scale: the factor of cosines with texts.
    """
    found = []
    if head != "prototype":
        assert class_ND is not None
        found.append(text_scale * image_BD @ class_ND.T)
    if head != "text":
        assert prototype_ND is not None
        found.append(PROTOTYPE_SCALE * image_BD @ F.normalize(prototype_ND, dim=-1).T)
    return torch.stack(found).mean(dim=0)


@contextmanager
def weights_in(model: nn.Module, weights: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Put other parameters into a model inside the context.

    A backward pass belongs into the context of its forward pass: the memory modes of the towers
    compute layers again with the parameters that the model has then.
    """
    before = {name: model.get_parameter(name) for name in weights}
    try:
        _put(model, weights)
        yield
    finally:
        _put(model, before)


def _put(model: nn.Module, weights: Mapping[str, nn.Parameter]) -> None:
    for name, value in weights.items():
        place, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(place), leaf, value)
