"""A small CLIP, images and losses for it, and peft's adapters on it with options for each kind."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.attention import explicit_attention
from so_clip.clip.engine.packed_text import PackedPrompts
from so_clip.methods.adalora import AdaLoRA
from so_clip.methods.peft_adapter import Peft
from tests.helpers.small_models import small_backbone, weightless_backbone

ROLES = ["attention", "mlp"]
ATTENTION_IN = ["attention_in"]
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


def moved(parameters: dict[str, nn.Parameter], by: float = 0.1) -> dict[str, nn.Parameter]:
    """Move what is trained away from its first values."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in parameters.values():
            value.add_(torch.randn(value.shape, generator=draw, dtype=value.dtype), alpha=by)
    return parameters


def loss_of(classifier: Classifier) -> Tensor:
    return F.cross_entropy(classifier(IMAGES_BCHW) / 10, LABELS_B)


def vit_b16() -> Classifier:
    """Return a classifier that has every parameter's name and shape, and no memory."""
    backbone = weightless_backbone()
    return Classifier(backbone, backbone.tokenize(["a photo of a dog."]))


OPTIONS: dict[str, tuple[dict[str, Any], float]] = {
    "lora": ({"rank": 4, "alpha": 6}, 6 / 4),
    "dora": ({"rank": 4, "alpha": 6}, 6 / 4),
    "adalora": ({"rank": 4, "target_rank": 2, "alpha": 6}, 6 / 4),
    "vera": ({"rank": 5}, 1.0),
    "ia3": ({"inputs": ["mlp_out"]}, 1.0),
    "loha": ({"rank": 3, "alpha": 2}, 2 / 3),
    "miss": ({"rank": 6}, 1.0),
    "delora": ({"rank": 3, "boundary": 2}, 1.0),
}


def build(kind: str, **options: Any) -> Peft:
    """Return a kind on SO's matrices."""
    if kind == "adalora":
        return AdaLoRA(ROLES, 9, **options)
    return Peft(kind, ROLES, **options)


def rows(classifier: Classifier) -> int:
    chunks = [chunk for chunk in classifier.prompts.chunks if isinstance(chunk, PackedPrompts)]
    return sum(len(chunk.tokens_N) for chunk in chunks)
