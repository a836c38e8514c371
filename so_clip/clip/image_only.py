"""An image model without a text tower, with open_clip's names for its parts.

Tensor names end in their shape: B images, C H W pixels, D embedding.
"""

from typing import Any

from torch import Tensor, nn


class ImageTower(nn.Module):
    """timm's model without its classifier: the features that the classifier would read.

    Args:
        trunk: timm's model, built with num_classes=0.
        image_size: side of its images, pixels.
    """

    def __init__(self, trunk: Any, image_size: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.image_size = image_size

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return image_BD as timm's model pools it, such as the class token of a ViT."""
        image_BD: Tensor = self.trunk(images_BCHW)
        return image_BD


class ImageOnly(nn.Module):
    """An image tower where open_clip's models have two: `visual`, and no text.

    Args:
        trunk, image_size: see ImageTower.

    Attributes:
        output_dim: D, the width of the trunk.
    """

    def __init__(self, trunk: Any, image_size: int) -> None:
        super().__init__()
        self.visual = ImageTower(trunk, image_size)
        self.output_dim = int(trunk.head_hidden_size)

    def encode_image(self, images_BCHW: Tensor) -> Tensor:
        """Return image_BD, not of unit length."""
        image_BD: Tensor = self.visual(images_BCHW)
        return image_BD
