"""CLIP-LoRA restated: the released code's multiplied-out update, and the equal plain model."""

import copy
import math

import torch
from torch import Tensor, nn


def published_linear(
    x_NI: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor,
    a_RI: Tensor,
    b_OR: Tensor,
    alpha: float,
    kept_NI: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """One of q, k and v: x W^T + bias + x' (B A)^T alpha / sqrt(r), x' what dropout left of x."""
    dropped_NI = x_NI if kept_NI is None else torch.where(kept_NI, x_NI / (1 - dropout), 0.0)
    update_OI = b_OR @ a_RI
    plain_NO = x_NI @ weight_OI.transpose(0, 1) + bias_O
    return plain_NO + dropped_NI @ update_OI.transpose(0, 1) * (alpha / math.sqrt(len(a_RI)))


def merged(model: nn.Module, factors: dict[str, Tensor], alpha: float) -> nn.Module:
    """A copy of a model with nn.MultiheadAttention that has the updates inside its weights.

    Args:
        model: open_clip's own, without any update.
        factors: `<block>.attn.in_proj.updates.<q|k|v>.<down|up>` -> A or B.
        alpha: as CLIP-LoRA's.
    """
    model = copy.deepcopy(model)
    state = model.state_dict()
    for name, b_OR in factors.items():
        if not name.endswith(".up"):
            continue
        a_RI = factors[name.removesuffix("up") + "down"]
        attention, _, rest = name.partition(".in_proj.")
        third = ["q", "k", "v"].index(rest.split(".")[1])
        width = len(b_OR)
        rows = slice(third * width, (third + 1) * width)
        state[f"{attention}.in_proj_weight"][rows] += b_OR @ a_RI * alpha / math.sqrt(len(a_RI))
    return model
