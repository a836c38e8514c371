"""Plain models that equal adapters: with other matrices, each by its paper's formula."""

import copy
import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

Own = dict[str, Tensor]  # an adapter's tensors, by what is left of their names
Matrix = Callable[[Tensor, Tensor, Own, float], tuple[Tensor, Tensor]]


def lora(weight_OI: Tensor, bias_O: Tensor, own: Own, scale: float) -> tuple[Tensor, Tensor]:
    """W + scale B A."""
    return weight_OI + scale * own["lora_B"] @ own["lora_A"], bias_O


def dora(weight_OI: Tensor, bias_O: Tensor, own: Own, scale: float) -> tuple[Tensor, Tensor]:
    """Each row of W + scale B A, made as long as the magnitudes say."""
    sum_OI, _ = lora(weight_OI, bias_O, own, scale)
    lengths_O1 = sum_OI.pow(2).sum(dim=1, keepdim=True).sqrt()
    return own["lora_magnitude_vector"][:, None] * sum_OI / lengths_O1, bias_O


def adalora(weight_OI: Tensor, bias_O: Tensor, own: Own, scale: float) -> tuple[Tensor, Tensor]:
    """W + scale B diag(E) A, with 1e-5 added to the rank that scale was divided by."""
    rank = len(own["lora_A"])
    diagonal = torch.diag(own["lora_E"][:, 0])
    update_OI = own["lora_B"] @ diagonal @ own["lora_A"]
    return weight_OI + scale * rank / (rank + 1e-5) * update_OI, bias_O


def vera(weight_OI: Tensor, bias_O: Tensor, own: Own, scale: float) -> tuple[Tensor, Tensor]:
    """W + diag(b) B diag(d) A, of the shared B and A as much as there is room for."""
    out, into = weight_OI.shape
    left_OR = torch.diag(own["vera_lambda_b"]) @ own["vera_B"][:out]
    right_RI = torch.diag(own["vera_lambda_d"]) @ own["vera_A"][:, :into]
    return weight_OI + left_OR @ right_RI, bias_O


def ia3(weight_OI: Tensor, bias_O: Tensor, own: Own, scale: float) -> tuple[Tensor, Tensor]:
    """Outputs times l, or, where l is a row, inputs."""
    scales = own["ia3_l"]
    if scales.shape[0] == 1:
        return weight_OI * scales, bias_O
    return weight_OI * scales, bias_O * scales[:, 0]


def loha(weight_OI: Tensor, bias_O: Tensor, own: Own, scale: float) -> tuple[Tensor, Tensor]:
    """W + scale (B1 A1) * (B2 A2)."""
    first_OI = own["hada_w1_a"] @ own["hada_w1_b"]
    second_OI = own["hada_w2_a"] @ own["hada_w2_b"]
    return weight_OI + scale * first_OI * second_OI, bias_O


def miss(weight_OI: Tensor, bias_O: Tensor, own: Own, scale: float) -> tuple[Tensor, Tensor]:
    """W + as many copies of the part, side by side, as there is room for."""
    part_OR = own["miss_block"].T
    copies = -(-weight_OI.shape[1] // part_OR.shape[1])
    return weight_OI + part_OR.repeat(1, copies)[:, : weight_OI.shape[1]], bias_O


def delora(weight_OI: Tensor, bias_O: Tensor, own: Own, scale: float) -> tuple[Tensor, Tensor]:
    """W + bound / r times the sum of b a^T of length 1, times the length of W's columns."""
    update_OI = torch.zeros_like(weight_OI)
    for b_O, a_I in zip(own["delora_B"].T, own["delora_A"], strict=True):
        update_OI += torch.outer(b_O / b_O.norm(), a_I / a_I.norm())
    rank = len(own["delora_A"])
    columns_I = weight_OI.pow(2).sum(dim=0).sqrt()
    return weight_OI + own["delora_lambda"] / rank * update_OI * columns_I, bias_O


MATRICES: dict[str, Matrix] = {
    **{"lora": lora, "dora": dora, "adalora": adalora, "vera": vera, "ia3": ia3, "loha": loha},
    **{"miss": miss, "delora": delora},
}


def merged(model: nn.Module, adapted: nn.Module, matrix: Matrix, scale: float) -> nn.Module:
    """A copy of a model with nn.MultiheadAttention that has an adapter inside its weights.

    Args:
        model: open_clip's own, without any adapter.
        adapted: the same with explicit attention and peft's layers, default its adapter's name.
        matrix: the formula.
    """
    model = copy.deepcopy(model)
    state = model.state_dict()
    for name, layer in adapted.named_modules():
        if not hasattr(layer, "base_layer"):
            continue
        values = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
        own = {
            key.split(".")[0]: value for key, value in values.items() if not key.startswith("base")
        }
        rows = slice(None)
        if part := re.search(r"([qkv])_proj$", name):
            third = "qkv".index(part[1])
            rows = slice(third * layer.out_features, (third + 1) * layer.out_features)
        weight, bias = _names(name)
        state[weight][rows], state[bias][rows] = matrix(
            state[weight][rows].clone(), state[bias][rows].clone(), own, scale
        )
    return model


def _names(layer: str) -> tuple[str, str]:
    """Return what a layer's weight and bias are called in nn.MultiheadAttention's model."""
    attention, projection = re.match(r"(.*\.attn)\.(in|q|k|v)_proj$", layer), "in_proj"
    if attention:
        return f"{attention[1]}.{projection}_weight", f"{attention[1]}.{projection}_bias"
    return f"{layer}.weight", f"{layer}.bias"
