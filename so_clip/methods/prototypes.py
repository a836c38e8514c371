"""Prototypes: each class is the mean of its few-shot images, without training and without text.

Source: Prototypical Networks for Few-shot Learning, arXiv 1703.05175. The factor 10 on cosines is
that of SMAT (arXiv 2403.08477, github szc12153/sparse_meta_tuning). With it, this method is the row
"Pre" of SMAT's tables.

Tensor names end in their shape: B images of a batch, N few-shot images, K classes, D embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.classifier import Classifier
from so_clip.clip.heads import Classes, Head, exact
from so_clip.methods.adapter import Adapter, FewShots
from so_clip.methods.options import above_zero, whole
from so_clip.smat.task import class_means


class Prototypes(Adapter):
    """logits_BK = scale · cosine(f, p_k), where p_k is the mean embedding of class k.

        p_k = mean of the unit-length embeddings of the few-shot images of class k

    Nothing is trained, so the image tower stays as loaded. It needs no text tower.

    Deviation from SMAT's code: it averages embeddings before they are unit-length.

    Args:
        scale: the factor on cosines, above 0.
        views: random crops of each image, averaged; 0 takes the centre crop of test images.
    """

    class_bound = True
    needs_text = False

    def __init__(self, scale: float = 10.0, views: int = 0) -> None:
        self.scale, self.views = above_zero("scale", scale), whole("views", views, 0)

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Replace the head. Its prototypes are those of zero-shot CLIP, or zero without text."""
        backbone = classifier.backbone
        head = PrototypeHead(backbone.logit_scale, first_classes(classifier))
        classifier.head = head
        return {}

    @torch.no_grad()
    def start(self, classifier: Classifier, few_shots: FewShots) -> None:
        """Set the prototypes and the scale."""
        head = classifier.head
        assert isinstance(head, PrototypeHead)
        head.prototypes.copy_(prototypes_of(few_shots, classifier.class_count, self.views))
        head.factor.fill_(self.scale)


class PrototypeHead(Head):
    """Scaled cosines with prototypes of any length; it does not use the prompts.

    Args:
        scale: the first factor on cosines.
        class_KD: the first prototypes.
    """

    prototypes: Tensor  # [K, D]
    factor: Tensor

    def __init__(self, scale: float, class_KD: Tensor) -> None:
        super().__init__(scale)
        self.register_buffer("prototypes", class_KD.clone())
        self.register_buffer("factor", class_KD.new_tensor(scale))

    def forward(self, image_BD: Tensor, classes: Classes) -> Tensor:
        """Return logits_BK without a call of `classes`."""
        with exact(image_BD.device):
            return self.logits(image_BD, self.prototypes)

    def logits(self, image_BD: Tensor, class_KD: Tensor) -> Tensor:
        """Return logits_BK for prototypes of any length."""
        return self.factor * (image_BD @ F.normalize(class_KD, dim=-1).T)


def first_classes(classifier: Classifier) -> Tensor:
    """Return class_KD of zero-shot CLIP; without a text tower, zeros of this size."""
    backbone = classifier.backbone
    if backbone.has_text:
        return classifier.classes()
    return backbone.mean.new_zeros(classifier.class_count, backbone.dimensions)


def prototypes_of(few_shots: FewShots, classes: int, views: int = 0) -> Tensor:
    """Return prototypes_KD: the mean unit-length embedding of each class's few-shot images.

    Args:
        few_shots: the images.
        classes: K.
        views: random crops of each image; 0 takes the centre crop of test images.
    """
    # One view at a time: all views at once would take more memory.
    sum_ND = few_shots.encode(min(views, 1))[0].clone()
    for _ in range(1, views):
        sum_ND += few_shots.encode(1)[0]
    return class_means(sum_ND / max(views, 1), few_shots.labels_N, classes)
