"""One linear layer for query, key and value, as three layers under the name of the one.

Tensor names end in their shape: I inputs, O outputs.
"""

from typing import Any

import torch
from torch import Tensor, nn

PARTS = ("q_proj", "k_proj", "v_proj")


class SplitProjection(nn.Module):
    """Query, key and value as linear layers `q_proj`, `k_proj` and `v_proj`.

    The output is that of the fused layer: the three outputs, side by side. State dicts have the
    names and layout of the fused layer, for saving and loading.

    Args:
        fused: the layer to replace; its outputs are query, key and value, in equal parts. Its
            values are copied.
    """

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = fused.in_features, fused.out_features
        biases = (None, None, None) if fused.bias is None else fused.bias.chunk(3)
        for name, rows_OI, bias_O in zip(PARTS, fused.weight.chunk(3), biases, strict=True):
            weight = copied(rows_OI, fused.weight)
            setattr(self, name, linear(weight, copied(bias_O, fused.weight)))
        self.train(fused.training)
        self.register_state_dict_post_hook(_save_as_one)
        self.register_load_state_dict_pre_hook(_load_from_one)

    def forward(self, x: Tensor) -> Tensor:
        """Return query, key and value of rows x [..., I], as one tensor [..., O]."""
        return torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=-1)


def linear(weight: Any, bias: Any) -> nn.Linear:
    """Build a Linear from existing parameters, without random numbers for new ones."""
    out_features, in_features = weight.shape
    layer = nn.Linear(in_features, out_features, bias=bias is not None, device="meta")
    layer.weight = weight
    if bias is not None:
        layer.bias = bias
    return layer


def copied(part: Tensor | None, whole: Tensor) -> nn.Parameter | None:
    """Return a copy of a part of a parameter, frozen if the parameter is."""
    if part is None:
        return None
    return nn.Parameter(part.detach().clone(), requires_grad=whole.requires_grad)


def _save_as_one(_module: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
    values = {name: state.pop(name) for name in [*state] if name.startswith(prefix)}
    first: dict[str, Tensor] = {}
    for kind in ("weight", "bias"):
        parts = [f"{prefix}{part}.{kind}" for part in PARTS]
        if all(name in values for name in parts):
            first[f"{prefix}{kind}"] = torch.cat([values.pop(name) for name in parts])
    state.update(first | values)


def _load_from_one(_module: nn.Module, state: dict[str, Tensor], prefix: str, *_rest: Any) -> None:
    for kind in ("weight", "bias"):
        value = state.pop(f"{prefix}{kind}", None)
        if value is not None:
            for part, rows in zip(PARTS, value.chunk(3), strict=True):
                state[f"{prefix}{part}.{kind}"] = rows
