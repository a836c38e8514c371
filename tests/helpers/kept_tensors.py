"""Measures the bytes that autograd keeps between a forward and a backward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from so_clip.runtime.peak_memory import StorageLog


def kept_bytes(run: Callable[[], Any], known: list[Tensor]) -> int:
    """Return the bytes that `run` allocated and that live as long as its result."""
    log = StorageLog("cpu")
    log.add(known, "weights")
    before = sum(change for _, change in log.changes)
    with log:
        result = run()
    after = sum(change for _, change in log.changes)
    del result
    return after - before


class CountingLinear(torch.autograd.Function):
    """A linear layer with a custom backward pass, like sampled gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any, weight: Tensor) -> Tensor:
        layer.forwards += 1
        ctx.save_for_backward(x, weight)
        return torch.nn.functional.linear(x, weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        return grad @ weight, None, grad.flatten(0, -2).T @ x.flatten(0, -2)


class OwnLinear(torch.nn.Linear):
    """Set this as the class of nn.Linear layers to compute them by CountingLinear."""

    forwards = 0

    def forward(self, input: Tensor) -> Tensor:
        return CountingLinear.apply(input, self, self.weight)
