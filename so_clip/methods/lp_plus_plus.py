"""LP++: a linear classifier with class prompts blended in, class by class.

Source: LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP, arXiv 2404.02285 (CVPR 2024);
released code: github FereshteShakeri/FewShot-CLIP-Strong-Baseline.

Tensor names end in their shape: B images of a batch, N few-shot images, K classes, D embedding.
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.classifier import Classifier
from so_clip.clip.heads import Head
from so_clip.methods.adapter import Adapter, FewShots
from so_clip.methods.options import seed as checked_seed

# Steps between two moves of alpha, as in the released code.
ALPHA_EVERY = 10


class LPPlusPlus(Adapter):
    """Trains w_k and b_k, and moves alpha_k, in logits_BK = f (w_k + alpha_k t_k) + b_k.

    As in the released code, the few-shot embeddings F [N, D] set

        w_k      the sum of the embeddings of class k,
        b_k      uniform in ±1/sqrt(D), as torch's linear layers start,
        alpha_k  250 · the mean cosine of images and the prompt of their class, the same for all k,
        rates    4 N / (largest eigenvalue of F^T F) for w and b,
                 N / (4 · max_k sum_n (f_n t_k)²) for alpha.

    An adapter does not know the optimizer. The parameters are therefore w and b divided by the
    square root of their rate: plain gradient descent at rate 1, with or without momentum, then
    moves w and b at their rate.

    The released code moves alpha after each tenth step, without momentum, along the sum of all
    gradients since the first step, because it never resets that sum. Here the parameter `descent`
    is minus this sum: it starts at zero, receives alpha's gradient, and has no momentum, because
    the optimizer resets its state after each step. alpha itself is a buffer.

    Deviations from the released code: batches are those of all methods, with new crops, where the
    authors use all images at once, cropped once; and the last step counts, not the best step on
    validation images. The paper has no bias.

    Args:
        seed: of the first b; the global random state does not change.
    """

    class_bound = True

    def __init__(self, seed: int = 0) -> None:
        self.seed = checked_seed(seed)

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Replace the head by the blended classifier, with w = b = 0 and alpha = CLIP's scale."""
        classifier.head = head = BlendedHead(classifier.backbone.logit_scale, classifier.classes())
        return {f"head.{name}": value for name, value in head.named_parameters()}

    @torch.no_grad()
    def start(self, classifier: Classifier, few_shots: FewShots) -> None:
        """Set w, b, alpha and their rates; all but b from one random crop of each image."""
        head = blended_head(classifier)
        image_ND, class_KD = few_shots.encode(1)[0], classifier.classes()
        label_NK = F.one_hot(few_shots.labels_N, len(class_KD)).to(image_ND.dtype)
        cosine_NK = image_ND @ class_KD.T
        class_cosine_K = (label_NK * cosine_NK).sum(0) / label_NK.sum(0)
        rate = 4 * len(image_ND) / torch.linalg.eigvalsh(image_ND.T @ image_ND)[-1]
        head.root_rate.copy_(rate.sqrt())
        head.alpha_rate.copy_(len(image_ND) / (4 * cosine_NK.square().sum(0).max()))
        head.weight.copy_(label_NK.T @ image_ND / head.root_rate)
        bound = 1 / math.sqrt(image_ND.shape[1])
        draws = torch.Generator().manual_seed(self.seed)
        bias_K = torch.empty(len(class_KD)).uniform_(-bound, bound, generator=draws)
        head.bias.copy_(bias_K.to(head.bias.device) / head.root_rate)
        head.alpha.fill_(250 * class_cosine_K.mean())

    @torch.no_grad()
    def after_step(self, classifier: Classifier, step: int) -> Iterable[nn.Parameter]:
        """Move alpha after each tenth step; `descent` keeps no momentum."""
        head = blended_head(classifier)
        if step % ALPHA_EVERY == 0:
            head.alpha.add_(head.alpha_rate * head.descent)
        return (head.descent,)


class BlendedHead(Head):
    """f (w_k + alpha_k t_k) + b_k, where the parameters are w and b over the root of their rate.

    Args:
        scale: the first value of alpha; it has no other use.
        class_KD: gives the sizes.
    """

    alpha: Tensor  # [K]
    alpha_rate: Tensor
    root_rate: Tensor

    def __init__(self, scale: float, class_KD: Tensor) -> None:
        super().__init__(scale)
        self.weight = nn.Parameter(torch.zeros_like(class_KD))
        self.bias = nn.Parameter(torch.zeros_like(class_KD[:, 0]))
        self.descent = nn.Parameter(torch.zeros_like(class_KD[:, 0]))
        self.register_buffer("alpha", torch.full_like(class_KD[:, 0], scale))
        self.register_buffer("alpha_rate", class_KD.new_ones(()))
        self.register_buffer("root_rate", class_KD.new_ones(()))

    def logits(self, image_BD: Tensor, class_KD: Tensor) -> Tensor:
        """Return logits_BK of the blend. The gradient of alpha goes to `descent`."""
        alpha_K = self.alpha + (self.descent - self.descent.detach())
        image_BK = image_BD @ (self.root_rate * self.weight).T + self.root_rate * self.bias
        return image_BK + alpha_K * (image_BD @ class_KD.T)


def blended_head(classifier: Classifier) -> BlendedHead:
    """Return the head that LP++ has put into the classifier."""
    assert isinstance(classifier.head, BlendedHead)
    return classifier.head
