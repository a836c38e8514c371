"""QuickGELU, OpenAI's activation, in the time and memory that GELU takes.

Left to autograd, x * sigmoid(1.702 x) keeps two tensors for the backward pass. But it is also
silu(1.702 x) / 1.702, and its derivative that of silu at 1.702 x.
"""

from typing import Any

import torch
from open_clip.transformer import QuickGELU as OpenClipQuickGELU
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_STEEPNESS = 1.702


class QuickGELU(OpenClipQuickGELU):
    """open_clip's QuickGELU, but for rounding; it keeps its input alone."""

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
    """Replace open_clip's QuickGELU by the one here, wherever it is in a model."""
    for module in model.modules():
        if type(module) is OpenClipQuickGELU:
            module.__class__ = QuickGELU
