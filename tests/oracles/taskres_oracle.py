"""TaskRes restated, class by class."""

import torch
from torch import Tensor


def logits(
    image_BD: Tensor, text_KD: Tensor, residual_KD: Tensor, alpha: float, scale: float
) -> Tensor:
    """Scaled cosines of unit-length images with text + alpha * residual.

    Args:
        text_KD: as the text tower returns it, of any length.
    """
    columns = []
    for text_D, residual_D in zip(text_KD, residual_KD, strict=True):
        moved_D = text_D + alpha * residual_D
        columns.append(scale * image_BD @ (moved_D / moved_D.norm()))
    return torch.stack(columns, dim=1)
