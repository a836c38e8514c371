"""Linear classifiers on the image tower's embeddings, initialised from the class prompts.

A backbone without a text tower has no prompts; its classifiers start from class means.

Tensor names end in their shape: B images of a batch, K classes, D embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.classifier import Classifier
from so_clip.clip.heads import Classes, Head, exact
from so_clip.methods.adapter import Adapter, FewShots
from so_clip.methods.options import flag
from so_clip.methods.prototypes import first_classes, prototypes_of


class LinearProbe(Adapter):
    """Trains w_k in logits_BK = scale · f w_k, initialised with the class embeddings t_k.

    With `normalize`, w_k is made unit-length in use (ZS-LP of CLAP, arXiv 2312.12730, github
    jusiro/CLAP). As published, w_k then starts with the length of the text tower's output: a step
    turns a longer vector less, so the published learning rate needs these lengths.

    Without a text tower, t_k is the mean embedding of the few-shot images of class k, as in
    method=prototypes, at unit length.

    Args:
        normalize: see above. If False, w_k is used unchanged and starts at unit length.
    """

    class_bound = True
    needs_text = False

    def __init__(self, normalize: bool = True) -> None:
        self.normalize = flag("normalize", normalize)

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Replace the head by the linear classifier and return its weights."""
        weight_KD = first_classes(classifier).clone()
        if self.normalize and classifier.backbone.has_text:
            weight_KD *= text_lengths(classifier)[:, None]
        classifier.head = head = self._head(classifier.backbone.logit_scale, weight_KD)
        return {"head.weight": head.weight}

    @torch.no_grad()
    def start(self, classifier: Classifier, few_shots: FewShots) -> None:
        """Without a text tower, set the weights to the class means."""
        if not classifier.backbone.has_text:
            head = classifier.head
            assert isinstance(head, LinearHead)
            prototypes_KD = prototypes_of(few_shots, classifier.class_count)
            head.weight.copy_(F.normalize(prototypes_KD, dim=-1))

    def _head(self, scale: float, weight_KD: Tensor) -> "LinearHead":
        return LinearHead(scale, weight_KD, self.normalize)


class LinearHead(Head):
    """Scaled products with trained weights; it does not use the prompts.

    Args:
        scale: of the products.
        weight_KD: first values.
        normalize: make the weights unit-length in use, like the image embeddings.
    """

    def __init__(self, scale: float, weight_KD: Tensor, normalize: bool = True) -> None:
        super().__init__(scale)
        self.weight = nn.Parameter(weight_KD)
        self.normalize = normalize

    def forward(self, image_BD: Tensor, classes: Classes) -> Tensor:
        """Return logits_BK without a call of `classes`."""
        with exact(image_BD.device):
            return self.logits(image_BD, self.weight)

    def logits(self, image_BD: Tensor, class_KD: Tensor) -> Tensor:
        """Return logits_BK for weights of any length."""
        weight_KD = F.normalize(class_KD, dim=-1) if self.normalize else class_KD
        return self.scale * image_BD @ weight_KD.T


@torch.no_grad()
def text_lengths(classifier: Classifier) -> Tensor:
    """Return length_K of the class embeddings before they are made unit-length."""
    backbone = classifier.backbone
    with exact(backbone.mean.device):
        text_PD: Tensor = classifier.prompts(backbone.model, backbone.memory)
    return classifier.class_means(text_PD).norm(dim=-1)
