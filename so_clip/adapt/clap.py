"""CLAP: a linear probe held to the class prompts, each class as firmly as these deserve.

Source: A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models, arXiv 2312.12730
(CVPR 2024); released code: github jusiro/CLAP.

Tensor names end in their shape: N training images, K classes, D embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from so_clip.adapt.adapter import Support
from so_clip.adapt.linear_probe import LinearHead, LinearProbe
from so_clip.checks import whole
from so_clip.clip.classifier import Classifier


class Clap(LinearProbe):
    """A normalised LinearProbe with the penalty mean_k lambda_k ||w_k - t_k||².

    lambda_k is what zero-shot CLIP gives, on average over the training images of class k and
    several random crops of each, to their own class: its softmax. It stays as it is, as in the
    released code's CLAP, whose outer step (its option `adaptative`) is not taken here. t_k is where
    w_k began, with the text tower's own length.

    The paper sums over the classes, the released code takes the mean, and so does this.

    Args:
        views: random crops of each image that lambda is averaged over; 0 takes its centre.
    """

    def __init__(self, views: int = 20) -> None:
        super().__init__(normalize=True)
        self.views = whole("adapter.views", views, 0)

    def _head(self, scale: float, weight_KD: Tensor) -> "ClapHead":
        return ClapHead(scale, weight_KD)

    @torch.no_grad()
    def start(self, classifier: Classifier, support: Support) -> None:
        """Set the multipliers, with the weights at zero-shot CLIP's."""
        head = classifier.head
        assert isinstance(head, ClapHead)
        label_NK = F.one_hot(support.labels_N, classifier.class_count).to(head.weight.dtype)
        rounds = max(1, self.views)
        total_K = torch.zeros_like(head.multiplier_K)
        for _ in range(rounds):
            image_ND = support.encode(min(self.views, 1))[0]
            total_K = total_K + (label_NK * classifier.logits(image_ND).softmax(-1)).sum(0)
        head.multiplier_K.copy_(total_K / (rounds * label_NK.sum(0)))

    def penalty(self, classifier: Classifier) -> Tensor:
        """Return the mean over classes of their weighted squared distances."""
        head = classifier.head
        assert isinstance(head, ClapHead)
        distance_K = (head.weight - head.first_KD).square().sum(dim=-1)
        return (head.multiplier_K * distance_K).mean()


class ClapHead(LinearHead):
    """A LinearHead that remembers where its weights began; training alone needs that.

    Args:
        scale: of the cosines.
        weight_KD: the classifier.
    """

    first_KD: Tensor
    multiplier_K: Tensor

    def __init__(self, scale: float, weight_KD: Tensor) -> None:
        super().__init__(scale, weight_KD)
        self.register_buffer("first_KD", weight_KD.clone(), persistent=False)
        self.register_buffer("multiplier_K", torch.zeros_like(weight_KD[:, 0]), persistent=False)
