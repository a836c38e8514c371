"""QuickGELU, OpenAI's activation, in the time and memory of GELU.

Autograd keeps two tensors for the backward pass of x * sigmoid(1.702 x). But this function equals
silu(1.702 x) / 1.702, so its derivative is the derivative of silu at 1.702 x, and x is enough.
"""

from typing import Any

import torch
from open_clip.transformer import QuickGELU as OpenClipQuickGELU
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_STEEPNESS = 1.702


class QuickGELU(OpenClipQuickGELU):
    """open_clip's QuickGELU up to rounding; it keeps only its input for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x * sigmoid(1.702 x)."""
        return _QuickGELU.apply(x)


class _QuickGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x * _STEEPNESS).sigmoid_().mul_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        z = x * _STEEPNESS
        return torch.ops.aten.silu_backward(grad, z, grad_input=z)


def lean_quick_gelu(model: nn.Module) -> None:
    """Replace every QuickGELU of open_clip in a model by the one of this module."""
    for module in model.modules():
        if type(module) is OpenClipQuickGELU:
            module.__class__ = QuickGELU
