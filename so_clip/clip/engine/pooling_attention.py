"""The attention pooling of open_clip's ResNets, with layers that are called.

open_clip hands the weights of the four layers to one function of torch. A layer that was wrapped
or replaced would then have no effect.
"""

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import AttentionPool2d
from torch import Tensor, nn


class ExplicitAttentionPool2d(AttentionPool2d):
    """open_clip's pooling up to rounding, with one query: the mean, whose row is the output."""

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """Return one row for each image."""
        x_BLD = x_BDHW.flatten(2).transpose(1, 2)
        x_BLD = torch.cat([x_BLD.mean(dim=1, keepdim=True), x_BLD], dim=1)
        x_BLD = x_BLD + self.positional_embedding.to(x_BLD.dtype)
        rows = (self.q_proj(x_BLD[:, :1]), self.k_proj(x_BLD), self.v_proj(x_BLD))
        heads = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in rows)
        mixed_B1D = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        pooled: Tensor = self.c_proj(mixed_B1D)
        return pooled[:, 0]


def explicit_pooling_2d(module: nn.Module) -> bool:
    """Change the class of open_clip's pooling; return whether the module is one."""
    if type(module) is not AttentionPool2d:
        return False
    module.__class__ = ExplicitAttentionPool2d
    return True
