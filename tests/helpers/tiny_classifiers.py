"""A few shots made up as embeddings, and a small classifier for them, in float64.

Tensor names end in their shape: V views, N training images, K classes, D embedding.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.attention import explicit_attention
from tests.helpers.small_models import small_backbone

PROMPTS = ("a photo of a dog.", "a photo of a very small cat.", "a drawing")
SCALE = 20.0
IMAGES_BCHW = torch.randint(
    256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


class Given:
    """The training images as an adapter sees them: random unit vectors, view after view."""

    def __init__(self, labels: Sequence[int], dimensions: int = 32, views: int = 20) -> None:
        draw = torch.Generator().manual_seed(len(labels))
        shape = (views + 1, len(labels), dimensions)
        # All views of an image are near each other, and all images a little alike.
        image_ND = torch.randn(shape[1:], generator=draw, dtype=torch.float64) + 0.3
        noise_VND = torch.randn(shape, generator=draw, dtype=torch.float64)
        self.centre_VND, self.view_VND = F.normalize(image_ND + noise_VND / 3, dim=-1).split(
            [1, views]
        )
        self.labels = list(labels)
        self.asked = 0

    @property
    def labels_N(self) -> Tensor:
        return torch.tensor(self.labels)

    def encode(self, views: int = 0) -> Tensor:
        if views == 0:
            return self.centre_VND
        self.asked += views
        return self.view_VND[self.asked - views : self.asked]


def classifier(prompts_per_class: int = 1, prompts: Sequence[str] = PROMPTS) -> Classifier:
    """A small CLIP in float64, with another scale than CLIP's, for readable logits."""
    backbone = small_backbone().to(torch.float64)
    explicit_attention(backbone.model)
    backbone.logit_scale = SCALE
    return Classifier(
        backbone, backbone.tokenize(list(prompts)), prompts_per_class=prompts_per_class
    )


def features(count: int = 5, dimensions: int = 32) -> Tensor:
    """Unit-length image_BD in float64."""
    draw = torch.Generator().manual_seed(9)
    image_BD = torch.randn(count, dimensions, generator=draw, dtype=torch.float64)
    return F.normalize(image_BD, dim=-1)
