"""Linear classifiers on the image tower's embeddings, initialised from the class prompts.

Tensor names end in their shape: B images of a batch, N few-shot images, K classes, D embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.adapt.adapter import Adapter, FewShots
from so_clip.adapt.options import above_zero, flag
from so_clip.clip.classifier import Classifier
from so_clip.clip.heads import Classes, Head, exact


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


class LPPlusPlus(Adapter):
    """LP++: trains w_k and a blending alpha_k per class in logits_BK = f (w_k + alpha_k t_k).

    As in the paper (arXiv 2404.02285, CVPR 2024) and its released code (github
    FereshteShakeri/FewShot-CLIP-Strong-Baseline), the few-shot embeddings F [N, D] set

        w_k      the sum of the embeddings of class k,
        alpha_k  250 · the mean cosine of images and the prompt of their class, the same for all k,
        rates    4 N / (largest eigenvalue of F^T F) for w,
                 N / (4 · max_k sum_n (f_n t_k)²) for alpha.

    An adapter does not know the optimizer. The parameters are therefore w and alpha divided by the
    square roots of their rates: plain gradient descent at rate 1, with or without momentum, then
    moves w and alpha at these rates.

    Deviations from the published method:
    - Batches are those of all methods, with new crops. The authors use all images at once, cropped
      once.
    - w and alpha move together, with the same momentum. The authors give alpha a plain step every
      10 steps along the sum of gradients, and never reset that sum.
    - There is no bias; the paper has none either.
    - The last step counts, not the best step on validation images.

    Args:
        alpha_rate: factor on alpha's rate, above 0. With momentum 0.9 a gradient counts ten times
            in total; the default 0.1 compensates for that.
    """

    class_bound = True

    def __init__(self, alpha_rate: float = 0.1) -> None:
        self.alpha_rate = above_zero("alpha_rate", alpha_rate)

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Replace the head by the blended classifier, with w = 0 and alpha = CLIP's scale."""
        classifier.head = head = BlendedHead(classifier.backbone.logit_scale, classifier.classes())
        return {"head.weight": head.weight, "head.alpha": head.alpha}

    @torch.no_grad()
    def start(self, classifier: Classifier, few_shots: FewShots) -> None:
        """Set w, alpha and their rates from one random crop of each few-shot image."""
        head = classifier.head
        assert isinstance(head, BlendedHead)
        image_ND, class_KD = few_shots.encode(1)[0], classifier.classes()
        label_NK = F.one_hot(few_shots.labels_N, len(class_KD)).to(image_ND.dtype)
        cosine_NK = image_ND @ class_KD.T
        class_cosine_K = (label_NK * cosine_NK).sum(0) / label_NK.sum(0)
        weight_rate = 4 * len(image_ND) / torch.linalg.eigvalsh(image_ND.T @ image_ND)[-1]
        alpha_rate = len(image_ND) / (4 * cosine_NK.square().sum(0).max()) * self.alpha_rate
        head.root_rates.copy_(torch.stack([weight_rate, alpha_rate]).sqrt())
        head.weight.copy_(label_NK.T @ image_ND / head.root_rates[0])
        head.alpha.copy_((250 * class_cosine_K.mean() / head.root_rates[1]).expand_as(head.alpha))


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


class BlendedHead(Head):
    """f (w_k + alpha_k t_k), where the parameters are w and alpha over the roots of their rates.

    Args:
        scale: the first value of alpha; it has no other use.
        class_KD: gives the sizes.
    """

    root_rates: Tensor  # [2], of w and of alpha

    def __init__(self, scale: float, class_KD: Tensor) -> None:
        super().__init__(scale)
        self.weight = nn.Parameter(torch.zeros_like(class_KD))
        self.alpha = nn.Parameter(torch.full_like(class_KD[:, 0], scale))
        self.register_buffer("root_rates", class_KD.new_ones(2))

    def logits(self, image_BD: Tensor, class_KD: Tensor) -> Tensor:
        """Return logits_BK of the blend."""
        root_weight, root_alpha = self.root_rates.unbind()
        text_BK = image_BD @ class_KD.T
        return image_BD @ (root_weight * self.weight).T + root_alpha * self.alpha * text_BK


@torch.no_grad()
def text_lengths(classifier: Classifier) -> Tensor:
    """Return length_K of the class embeddings before they are made unit-length."""
    backbone = classifier.backbone
    with exact(backbone.mean.device):
        text_PD: Tensor = classifier.prompts(backbone.model, backbone.memory)
    return classifier.class_means(text_PD).norm(dim=-1)
