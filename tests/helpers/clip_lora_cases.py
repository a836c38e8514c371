"""A small CLIP with CLIP-LoRA, and images and losses for it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.classifier import Classifier
from so_clip.methods.clip_lora import ClipLoRA
from tests.helpers.peft_cases import IMAGES_BCHW, LABELS_B, NO_CHUNKS, PROMPTS, small

__all__ = ["IMAGES_BCHW", "LABELS_B", "NO_CHUNKS", "PROMPTS", "adapted", "small"]


def adapted(classifier: Classifier, **options: Any) -> dict[str, nn.Parameter]:
    """Add CLIP-LoRA and move it away from zero."""
    factors = ClipLoRA(**options)(classifier)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in factors.items():
            if name.endswith("up"):
                value.copy_(torch.randn(value.shape, generator=draw, dtype=value.dtype) / 8)
    return factors


def loss_of(classifier: Classifier) -> Tensor:
    return F.cross_entropy(classifier(IMAGES_BCHW) / 10, LABELS_B)
