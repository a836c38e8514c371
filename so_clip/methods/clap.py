"""CLAP: a linear probe with a penalty on its distance from the class prompts, weighted per class.

Source: A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models, arXiv 2312.12730
(CVPR 2024); released code: github jusiro/CLAP.

Tensor names end in their shape: N few-shot images, K classes, D embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from so_clip.clip.classifier import Classifier
from so_clip.methods.adapter import FewShots
from so_clip.methods.linear_probe import LinearHead, LinearProbe
from so_clip.methods.options import whole


class Clap(LinearProbe):
    """A normalised LinearProbe with the penalty mean_k lambda_k ||w_k - t_k||².

    t_k is the first value of w_k and has the length of the text tower's output. lambda_k is the
    mean softmax probability that zero-shot CLIP gives to the right class, over the few-shot images
    of class k and several random crops of each. As in CLAP of the released code, lambda stays
    constant; the released code's outer step (its option `adaptative`) is left out.

    The paper sums the penalty over the classes. The released code takes the mean, and so do we.

    Args:
        views: random crops of each image for lambda; 0 takes the centre crop.
    """

    needs_text = True

    def __init__(self, views: int = 20) -> None:
        super().__init__(normalize=True)
        self.views = whole("views", views, 0)

    def _head(self, scale: float, weight_KD: Tensor) -> "ClapHead":
        return ClapHead(scale, weight_KD)

    @torch.no_grad()
    def start(self, classifier: Classifier, few_shots: FewShots) -> None:
        """Set the multipliers lambda. The weights are still those of zero-shot CLIP."""
        head = classifier.head
        assert isinstance(head, ClapHead)
        label_NK = F.one_hot(few_shots.labels_N, classifier.class_count).to(head.weight.dtype)
        rounds = max(1, self.views)
        total_K = torch.zeros_like(head.multiplier_K)
        for _ in range(rounds):
            image_ND = few_shots.encode(min(self.views, 1))[0]
            total_K = total_K + (label_NK * classifier.logits(image_ND).softmax(-1)).sum(0)
        head.multiplier_K.copy_(total_K / (rounds * label_NK.sum(0)))

    def penalty(self, classifier: Classifier) -> Tensor:
        """Return the mean over the classes of lambda_k ||w_k - t_k||²."""
        head = classifier.head
        assert isinstance(head, ClapHead)
        distance_K = (head.weight - head.first_KD).square().sum(dim=-1)
        return (head.multiplier_K * distance_K).mean()


class ClapHead(LinearHead):
    """A LinearHead that keeps t_k and lambda_k. Only training needs them.

    Args:
        scale: of the cosines.
        weight_KD: first values of the classifier.
    """

    first_KD: Tensor
    multiplier_K: Tensor

    def __init__(self, scale: float, weight_KD: Tensor) -> None:
        super().__init__(scale, weight_KD)
        self.register_buffer("first_KD", weight_KD.clone(), persistent=False)
        self.register_buffer("multiplier_K", torch.zeros_like(weight_KD[:, 0]), persistent=False)
