"""Linear classifiers on the image tower's embeddings that begin with the class prompts.

Tensor names end in their shape: B images of a batch, N training images, K classes, D embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.adapt.adapter import Adapter, Support
from so_clip.checks import number
from so_clip.clip.classifier import Classifier
from so_clip.clip.heads import Classes, Head, exact
from so_clip.errors import InputError


class LinearProbe(Adapter):
    """logits_BK = scale · f w_k, from w_k = t_k, the class embeddings.

    With `normalize`, the w_k are made unit-length in use (ZS-LP of CLAP, arXiv 2312.12730,
    github jusiro/CLAP). They begin as long as the text tower's own output, as published: of a
    longer vector, a step turns the direction less, so that the published rate needs these lengths.

    Args:
        normalize: see above; without, the w_k are used as they are and begin at unit length.
    """

    class_bound = True

    def __init__(self, normalize: bool = True) -> None:
        if not isinstance(normalize, bool):
            raise InputError(f"adapter.normalize={normalize}: must be true or false.")
        self.normalize = normalize

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Put the classifier in the place of the class prompts and return its weights."""
        weight_KD = classifier.classes().clone()
        if self.normalize:
            weight_KD *= text_lengths(classifier)[:, None]
        classifier.head = head = self._head(classifier.backbone.logit_scale, weight_KD)
        return {"head.weight": head.weight}

    def _head(self, scale: float, weight_KD: Tensor) -> "LinearHead":
        return LinearHead(scale, weight_KD, self.normalize)


class LPPlusPlus(Adapter):
    """LP++: logits_BK = f (w_k + alpha_k t_k), with blending alpha_k learned for each class.

    As in the paper (arXiv 2404.02285, CVPR 2024) and its released code (github
    FereshteShakeri/FewShot-CLIP-Strong-Baseline), the training images F [N, D] set

        w_k      the sum of its class's embeddings,
        alpha_k  250 · the mean cosine of images and their own class's prompt, the same for all k,
        rates    4 N / (largest eigenvalue of F^T F) for w,
                 N / (4 · max_k sum_n (f_n t_k)²) for alpha.

    An adapter knows no optimizer: the parameters are w and alpha divided by the roots of their
    rates, so that plain gradient descent at rate 1, with momentum or without, moves w and alpha at
    these rates.

    Other than published: batches are those of all methods, anew cropped, where the authors take all
    images at once, cropped once; w and alpha move together, with the same momentum, where theirs
    give alpha a plain step each 10 steps along the gradients since (they also never reset their
    sum); there is no bias, which the paper has not either; the last step counts, not the one that
    is best on validation images.

    Args:
        alpha_rate: alpha's rate is multiplied with this. With momentum 0.9 a gradient counts
            tenfold in the end, which 0.1 makes good.
    """

    class_bound = True

    def __init__(self, alpha_rate: float = 0.1) -> None:
        self.alpha_rate = number("adapter.alpha_rate", alpha_rate)
        if self.alpha_rate <= 0:
            raise InputError(f"adapter.alpha_rate={alpha_rate}: must be above 0.")

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Put the blended classifier in place, w at zero and alpha at CLIP's scale."""
        classifier.head = head = BlendedHead(classifier.backbone.logit_scale, classifier.classes())
        return {"head.weight": head.weight, "head.alpha": head.alpha}

    @torch.no_grad()
    def start(self, classifier: Classifier, support: Support) -> None:
        """Set w, alpha and their rates from one random crop of each training image."""
        head = classifier.head
        assert isinstance(head, BlendedHead)
        image_ND, class_KD = support.encode(1)[0], classifier.classes()
        label_NK = F.one_hot(support.labels_N, len(class_KD)).to(image_ND.dtype)
        cosine_NK = image_ND @ class_KD.T
        own_K = (label_NK * cosine_NK).sum(0) / label_NK.sum(0)
        weight_rate = 4 * len(image_ND) / torch.linalg.eigvalsh(image_ND.T @ image_ND)[-1]
        alpha_rate = len(image_ND) / (4 * cosine_NK.square().sum(0).max()) * self.alpha_rate
        head.root_rates.copy_(torch.stack([weight_rate, alpha_rate]).sqrt())
        head.weight.copy_(label_NK.T @ image_ND / head.root_rates[0])
        head.alpha.copy_((250 * own_K.mean() / head.root_rates[1]).expand_as(head.alpha))


class LinearHead(Head):
    """Scaled products with weights of its own; it needs no prompts.

    Args:
        scale: of the products.
        weight_KD: the classifier.
        normalize: make the weights unit-length in use, as the images' embeddings are.
    """

    def __init__(self, scale: float, weight_KD: Tensor, normalize: bool = True) -> None:
        super().__init__(scale)
        self.weight = nn.Parameter(weight_KD)
        self.normalize = normalize

    def forward(self, image_BD: Tensor, classes: Classes) -> Tensor:
        """Return logits_BK without asking for `classes`."""
        with exact(image_BD.device):
            return self.logits(image_BD, self.weight)

    def logits(self, image_BD: Tensor, class_KD: Tensor) -> Tensor:
        """Return logits_BK of weights that may have any length."""
        weight_KD = F.normalize(class_KD, dim=-1) if self.normalize else class_KD
        return self.scale * image_BD @ weight_KD.T


class BlendedHead(Head):
    """f (w_k + alpha_k t_k), with w and alpha kept divided by the roots of their rates.

    Args:
        scale: where alpha begins; it is not used otherwise.
        class_KD: for its sizes.
    """

    root_rates: Tensor  # of w and of alpha

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
