"""Activations that are cheaply made again in the backward pass, so that they need not be kept."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from so_clip.clip.kept import mark_kept

Output = TypeVar("Output")


def recomputed(
    cheap: Callable[[Tensor], Tensor], costly: Callable[[Tensor], Output], x: Tensor
) -> Output:
    """Return costly(cheap(x)), keeping x for the backward pass in place of cheap(x).

    What `costly` would keep of cheap(x), as it is or as a view, is made from x again where it is
    needed; all else that it keeps, it keeps. So any linear layer can stand there, also one with a
    backward pass of its own, and it runs but once, unlike in a checkpoint of both.

    Inside `torch.utils.checkpoint` the numbers are right, but x is not let go of. A compiler, which
    chooses itself what to keep, is not interfered with.

    Args:
        cheap: draws no random numbers.
        costly: reads its input as it is; under autocast see `in_matmul_precision`.
        x: must not be changed afterwards.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return costly(cheap(x))
    kind = x.device.type
    enabled, precision = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    made = cheap(x)
    storage, dtype, start = made.untyped_storage()._cdata, made.dtype, made.storage_offset()
    x, version = x.detach(), x._version

    def pack(saved: Tensor) -> Tensor | _View:
        if saved.untyped_storage()._cdata != storage or saved.dtype != dtype:
            return saved.detach()  # itself, it could end up in a cycle of references
        return _View(saved.size(), saved.stride(), saved.storage_offset() - start)

    def unpack(packed: Tensor | _View) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        if x._version != version:
            raise RuntimeError(
                f"a tensor of shape {tuple(x.shape)}, kept for the backward pass, was changed in "
                "place since: gradients made from it would be wrong."
            )
        with torch.no_grad(), torch.autocast(kind, precision, enabled):
            again = cheap(x)
        return again.as_strided(packed.size, packed.stride, packed.offset + again.storage_offset())

    with saved_tensors_hooks(pack, unpack):
        return costly(mark_kept(made))


class _View(NamedTuple):
    size: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt


def in_matmul_precision(x: Tensor) -> Tensor:
    """Return x as a linear layer would read it: under autocast, rounded."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype == torch.float32:
        return x.to(torch.get_autocast_dtype(kind))
    return x
