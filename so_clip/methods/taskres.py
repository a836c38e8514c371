"""TaskRes: a trained residual on each class's text embedding. Both towers stay frozen.

Source: Task Residual for Tuning Vision-Language Models, arXiv 2211.10277; released code: github
geekyutao/TaskRes. Its "enhanced base" is left out.

Tensor names end in their shape: B images, K classes, P prompts, D embedding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.classifier import Classifier
from so_clip.clip.heads import Head, exact
from so_clip.errors import InputError
from so_clip.methods.adapter import Adapter, FewShots
from so_clip.methods.options import number


class TaskRes(Adapter):
    """Trains residual_KD: logits_BK = scale · cosine(image_BD, text_KD + alpha · residual_KD).

    The residual starts at zero. As in the released code, text_KD has the length of the text tower's
    output, about 10 for CLIP. With unit length, an optimizer step would turn it ten times as far.
    A class with several prompts has their mean direction, as in zero-shot, and their mean length.

    Args:
        alpha: scales the residual; not 0. The default is the paper's.
    """

    class_bound = True

    def __init__(self, alpha: float = 0.5) -> None:
        self.alpha = number("alpha", alpha)
        if self.alpha == 0:
            raise InputError("adapter.alpha=0: nothing would be trained; the paper's is 0.5.")

    def __call__(self, classifier: Classifier) -> dict[str, nn.Parameter]:
        """Replace the head by a head with a residual, and return the residual."""
        backbone = classifier.backbone
        residual_KD = torch.zeros(classifier.class_count, backbone.dimensions)
        head = ResidualHead(backbone.logit_scale, self.alpha, residual_KD.to(backbone.mean.device))
        classifier.head = head
        return {"head.residual": head.residual}

    def start(self, classifier: Classifier, few_shots: FewShots) -> None:
        """Give the text embeddings the length of the text tower's output."""
        self._set_lengths(classifier)

    def resume(self, classifier: Classifier) -> None:
        """Give the text embeddings their length again. It follows from the frozen text tower."""
        self._set_lengths(classifier)

    def _set_lengths(self, classifier: Classifier) -> None:
        head, backbone = classifier.head, classifier.backbone
        assert isinstance(head, ResidualHead)
        with torch.no_grad(), exact(backbone.mean.device):
            text_PD = classifier.prompts(backbone.model, backbone.memory)
        head.length_K1 = classifier.class_means(text_PD.norm(dim=-1, keepdim=True))


class ResidualHead(Head):
    """Scaled cosines with length_K1 · class_KD + alpha · residual_KD.

    Args:
        scale: of the cosines.
        alpha: see TaskRes.
        residual_KD: first values.
    """

    length_K1: Tensor

    def __init__(self, scale: float, alpha: float, residual_KD: Tensor) -> None:
        super().__init__(scale)
        self.alpha = alpha
        self.residual = nn.Parameter(residual_KD)
        # Not trained: it follows from the text tower, so state dicts do not store it.
        self.register_buffer("length_K1", torch.ones_like(residual_KD[:, :1]), persistent=False)

    def logits(self, image_BD: Tensor, class_KD: Tensor) -> Tensor:
        """Return logits_BK."""
        moved_KD = self.length_K1 * class_KD + self.alpha * self.residual
        return self.scale * image_BD @ F.normalize(moved_KD, dim=-1).T
