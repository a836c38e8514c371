"""Recompute cheap activations in the backward pass instead of keeping them."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

Output = TypeVar("Output")


def mark_saved_anyway(x: Tensor) -> Tensor:
    """Mark a tensor that another operation saves for the backward pass or recomputes there.

    Saving a marked tensor again is free. SampledLinear reads the attribute.
    """
    x.saved_anyway = True  # type: ignore[attr-defined]
    return x


def recomputed(
    cheap: Callable[[Tensor], Tensor], costly: Callable[[Tensor], Output], x: Tensor
) -> Output:
    """Return costly(cheap(x)), and keep x for the backward pass in place of cheap(x).

    If `costly` saves cheap(x) or a view of it, the backward pass computes cheap(x) from x again.
    Other tensors that `costly` saves stay saved. So `costly` can be any linear layer, even one with
    a custom backward pass, and it runs only once, unlike in a checkpoint of both functions.

    Inside `torch.utils.checkpoint` the results are right, but x is not freed early. Under a
    compiler this function does nothing special, because the compiler chooses what to keep.

    Args:
        cheap: must draw no random numbers.
        costly: must read its input without a cast; under autocast see `in_matmul_precision`.
        x: must not change before the backward pass.

    Raises:
        RuntimeError: in the backward pass, if x was changed in place since.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return costly(cheap(x))
    kind = x.device.type
    enabled, precision = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    hidden = cheap(x)
    storage, dtype, start = hidden.untyped_storage()._cdata, hidden.dtype, hidden.storage_offset()
    x, version = x.detach(), x._version

    def pack(saved: Tensor) -> Tensor | _View:
        if saved.untyped_storage()._cdata != storage or saved.dtype != dtype:
            return saved.detach()  # the tensor itself could create a reference cycle
        return _View(saved.size(), saved.stride(), saved.storage_offset() - start)

    def unpack(packed: Tensor | _View) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        if x._version != version:
            raise RuntimeError(
                f"a tensor of shape {tuple(x.shape)}, kept for the backward pass, was changed in "
                "place since: its gradients would be wrong. Do not change it before backward()."
            )
        with torch.no_grad(), torch.autocast(kind, precision, enabled):
            again = cheap(x)
        return again.as_strided(packed.size, packed.stride, packed.offset + again.storage_offset())

    with saved_tensors_hooks(pack, unpack):
        return costly(mark_saved_anyway(hidden))


class _View(NamedTuple):
    size: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt


def in_matmul_precision(x: Tensor) -> Tensor:
    """Return x in the dtype that a linear layer reads: under autocast, x is rounded."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype == torch.float32:
        return x.to(torch.get_autocast_dtype(kind))
    return x
