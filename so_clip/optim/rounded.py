"""Weights and biases in the half precision that a layer computes in, rounded as seldom as possible.

Under autocast a layer rounds its weight in every forward and backward pass, and its bias in every
forward pass. These functions return a copy that is there already, bit for bit the same.
"""

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from so_clip.optim.arena import Arena

# The rounded copy of each frozen bias, with the version and the storage of what was rounded.
_frozen: "WeakTensorKeyDictionary" = WeakTensorKeyDictionary()


def weight_to_multiply(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the half-precision copy of a weight; without one, the weight itself, to be rounded."""
    copy = _arena_copy(weight, dtype)
    return weight.detach() if copy is None else copy


def bias_to_add(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return a bias in this dtype, without autograd's history.

    A frozen parameter is rounded once, and again only after it has changed. A write through `.data`
    is hidden from torch, so this function does not see it either.
    """
    if bias is None:
        return None
    copy_O = _arena_copy(bias, dtype)
    if copy_O is not None:
        return copy_O
    rounded_O = bias.detach()
    if bias.dtype == dtype or torch.compiler.is_compiling():
        return rounded_O.to(dtype)
    if bias.requires_grad or not isinstance(bias, nn.Parameter):
        return rounded_O.to(dtype)
    key = (bias._version, bias.untyped_storage()._cdata, dtype)
    found = _frozen.get(bias)
    if found is None or found[1].dtype != dtype or found[1].device != bias.device:
        found = _frozen[bias] = (key, rounded_O.to(dtype))
    elif found[0] != key:
        # A captured step may read the copy, so it keeps its address.
        found[1].copy_(rounded_O)
        _frozen[bias] = (key, found[1])
    frozen_O: Tensor = found[1]
    return frozen_O


def _arena_copy(tensor: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Return the copy of a trained tensor that an optimizer keeps up to date, or None."""
    if tensor.dtype == dtype or torch.compiler.is_compiling():
        return None
    arena = Arena.of(tensor)
    return None if arena is None else arena.half_of(tensor, dtype)
