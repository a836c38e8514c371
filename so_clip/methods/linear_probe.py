"""Linear classifiers on the image tower's embeddings, initialised from the class prompts.

Tensor names end in their shape: B images of a batch, K classes, D embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.classifier import Classifier
from so_clip.clip.heads import Classes, Head, exact
from so_clip.methods.adapter import Adapter
from so_clip.methods.options import flag


class LinearProbe(Adapter):
    """Trains w_k in logits_BK = scale · f w_k, initialised with the class embeddings t_k.

    With `normalize`, w_k is made unit-length in use (ZS-LP of CLAP, arXiv 2312.12730, github
    jusiro/CLAP). As published, w_k then starts with the length of the text tower's output: a step
    turns a longer vector less, so the published learning rate needs these lengths.

    Args:
        normalize: see above. If False, w_k is used unchanged and starts at unit length.
    """

    class_bound = True

    def __init__(self, normalize: bool = True) -> None:
        self.normalize = flag("normalize", normalize)

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Replace the head by the linear classifier and return its weights."""
        weight_KD = classifier.classes().clone()
        if self.normalize:
            weight_KD *= text_lengths(classifier)[:, None]
        classifier.head = head = self._head(classifier.backbone.logit_scale, weight_KD)
        return {"head.weight": head.weight}

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
