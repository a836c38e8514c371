"""TaskRes: a learned residual beside each class's text embedding; both towers stay as they are.

Source: Task Residual for Tuning Vision-Language Models, arXiv 2211.10277; released code: github
geekyutao/TaskRes. Its "enhanced base" is not here.

Tensor names end in their shape: B images, K classes, P prompts, D embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.adapt.adapter import Adapter, Support
from so_clip.checks import number
from so_clip.clip.classifier import Classifier
from so_clip.clip.heads import Head, exact
from so_clip.errors import InputError


class TaskRes(Adapter):
    """Classifies by the cosine with text_KD + alpha * residual_KD; the residual starts at zero.

    As in the released code, text_KD has the length that the text tower gave it, about 10 for CLIP:
    at unit length, a step of the optimizer would turn it ten times as far. A class with several
    prompts has their mean direction, as zero-shot, and the mean of their lengths.

    Args:
        alpha: scales the residual; not 0.
    """

    class_bound = True

    def __init__(self, alpha: float = 0.5) -> None:
        self.alpha = number("adapter.alpha", alpha)
        if self.alpha == 0:
            raise InputError("adapter.alpha=0: nothing would be trained; the paper's is 0.5.")

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Put a head with the residual in the classifier's, and return the residual."""
        backbone = classifier.backbone
        residual_KD = torch.zeros(classifier.class_count, backbone.dimensions)
        head = ResidualHead(backbone.logit_scale, self.alpha, residual_KD.to(backbone.mean.device))
        classifier.head = head
        return {"head.residual": head.residual}

    def start(self, classifier: Classifier, support: Support) -> None:
        """Let the residual be added at the text embeddings' own length."""
        head, backbone = classifier.head, classifier.backbone
        assert isinstance(head, ResidualHead)
        with torch.no_grad(), exact(backbone.mean.device):
            text_PD = classifier.prompts(backbone.model, backbone.memory)
        head.length_K1 = classifier.class_means(text_PD.norm(dim=-1, keepdim=True))


class ResidualHead(Head):
    """Scaled cosines with length_K1 * class_KD + alpha * residual_KD.

    Args:
        scale: what cosines are multiplied with.
        alpha: see TaskRes.
        residual_KD: starting values.
    """

    length_K1: Tensor

    def __init__(self, scale: float, alpha: float, residual_KD: Tensor) -> None:
        super().__init__(scale)
        self.alpha = alpha
        self.residual = nn.Parameter(residual_KD)
        # Follows from the text tower, so it is no part of what was learned.
        self.register_buffer("length_K1", torch.ones_like(residual_KD[:, :1]), persistent=False)

    def logits(self, image_BD: Tensor, class_KD: Tensor) -> Tensor:
        """Return logits_BK."""
        moved_KD = self.length_K1 * class_KD + self.alpha * self.residual
        return self.scale * image_BD @ F.normalize(moved_KD, dim=-1).T
