"""A small CLIP with CLIP-LoRA, and images and losses for it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.adapt.clip_lora import ClipLoRA
from so_clip.clip.attention import explicit_attention
from so_clip.clip.classifier import Classifier
from tests.helpers.small_models import small_backbone

PROMPTS = ["a photo of a dog.", "a photo of a very small cat.", "a drawing", "a photo of a cat."]
NO_CHUNKS = 1e9
IMAGES_BCHW = torch.randint(
    256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
LABELS_B = torch.tensor([1, 3])


def small(budget_mib: float = NO_CHUNKS, dtype: torch.dtype = torch.float32) -> Classifier:
    backbone = small_backbone().to(dtype)
    explicit_attention(backbone.model)
    return Classifier(backbone, backbone.tokenize(PROMPTS), budget_mib)


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
