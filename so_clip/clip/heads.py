"""Heads: logits from embeddings.

Tensor names end in their shape: B images, K classes, D embedding.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Classes = Callable[[], Tensor]


def exact(device: torch.device) -> torch.autocast:
    """Return a context without autocast, which would round cosines times 100 to three digits."""
    return torch.autocast(device.type, enabled=False)


class Head(nn.Module):
    """Logits from unit-length embeddings of images and classes, in float32 even under autocast.

    Args:
        scale: the factor on cosines.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, image_BD: Tensor, classes: Classes) -> Tensor:
        """Return logits_BK.

        Args:
            classes: returns class_KD from the text tower, under the caller's autocast. A head that
                does not call it needs no prompts.
        """
        class_KD = classes()
        with exact(image_BD.device):
            return self.logits(image_BD, class_KD)

    def logits(self, image_BD: Tensor, class_KD: Tensor) -> Tensor:
        """Return logits_BK; called without autocast."""
        raise NotImplementedError

    def for_other_classes(self) -> "Head":
        """Return the head to use for classes that were not trained; by default this one."""
        return self


class CosineHead(Head):
    """CLIP's head: scale * image_BD @ class_KD.T."""

    def logits(self, image_BD: Tensor, class_KD: Tensor) -> Tensor:
        """Return logits_BK: scaled cosines."""
        return self.scale * image_BD @ class_KD.T
