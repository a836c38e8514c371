"""Recomputation of parts with dropout, also inside a CUDA graph.

torch's checkpoint saves the random state before the first run and restores it for the second. A
CUDA graph cannot copy random states. There the first run keeps the masks of dropout, one byte per
value, and the second run uses them. The results are the same.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

Output = TypeVar("Output")
_PROBABILITIES = ("p", "prob", "probability")  # of dropout modules


def draws_random(module: nn.Module) -> bool:
    """Return whether a module or one inside it drops values: it is training, with a probability."""
    return any(
        isinstance(value, float) and value > 0 and (name in _PROBABILITIES or "drop" in name)
        for part in module.modules()
        if part.training
        for name, value in vars(part).items()
    )


def run_twice(function: Callable[..., Output], *inputs: Any, random: bool) -> Output:
    """Return function(*inputs); the backward pass runs it again in place of keeping activations.

    Args:
        function, inputs: see torch.utils.checkpoint.
        random: whether the function draws random numbers; see draws_random.
    """
    output: Output
    if not (random and _now.keeps_masks):
        output = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=random)
        return output

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        masks: list[Tensor] = []
        return _keeping(masks), _using(masks)

    output = checkpoint(
        function, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
    )
    return output


@contextmanager
def without_random_states() -> Iterator[None]:
    """Keep masks in place of random states in this context."""
    before, _now.keeps_masks = _now.keeps_masks, True
    try:
        yield
    finally:
        _now.keeps_masks = before


def dropout(x: Tensor, probability: float) -> Tensor:
    """Drop values of x and scale the rest; `run_twice` drops the same ones again."""
    if _now.kept is None and _now.used is None:
        # On the CPU, F.dropout would save its mask as floats, not as bytes.
        return torch.native_dropout(x, probability, True)[0]
    mask = None if _now.used is None else next(_now.used)
    remaining, mask = _Dropout.apply(x, probability, mask)
    if _now.kept is not None:
        _now.kept.append(mask)
    return remaining


class _Now(threading.local):
    """The state of this thread. The backward pass may run in another one.

    Attributes:
        keeps_masks: whether recomputed parts keep masks.
        kept: the masks of the part that runs for the first time.
        used: those of the part that runs again.
    """

    keeps_masks = False
    kept: list[Tensor] | None = None
    used: Iterator[Tensor] | None = None


_now = _Now()


@contextmanager
def _keeping(masks: list[Tensor]) -> Iterator[None]:
    before, _now.kept = _now.kept, masks
    try:
        yield
    finally:
        _now.kept = before


@contextmanager
def _using(masks: list[Tensor]) -> Iterator[None]:
    before, _now.used = _now.used, iter(masks)
    try:
        yield
    finally:
        _now.used = before


class _Dropout(torch.autograd.Function):
    """torch.native_dropout, or the same with a mask that is there."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, probability: float, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.scale = 1 / (1 - probability)
        if mask is None:
            remaining, mask = torch.native_dropout(x, probability, True)
        else:
            remaining = torch.ops.aten.native_dropout_backward(x, mask, ctx.scale)
        ctx.save_for_backward(mask)
        ctx.mark_non_differentiable(mask)
        return remaining, mask

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return torch.ops.aten.native_dropout_backward(grad, mask, ctx.scale), None, None
