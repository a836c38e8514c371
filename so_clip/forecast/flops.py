"""Counts the floating-point operations of a training step while it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)


@dataclass
class Flops:
    """Operations of matrix products, convolutions and attention; a multiply-add counts as two.

    Recomputation for the backward pass, and a penalty, count as backward.
    """

    forward: int = 0
    backward: int = 0

    @property
    def total(self) -> int:
        """Forward and backward together."""
        return self.forward + self.backward


def counter() -> FlopCounterMode:
    """Return torch's counter, with formulas for the attention kernels of the CPU."""
    return FlopCounterMode(display=False, custom_mapping=_FORMULAS)


@contextmanager
def counted(classifier: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Flops]:
    """Count the one training step in the block; the counts are set when the block ends."""
    flops = Flops()
    with counter() as counts:

        def forward_done(*_: Any) -> None:
            flops.forward = counts.get_total_flops()

        def backward_done(*_: Any) -> None:
            flops.backward = counts.get_total_flops() - flops.forward

        hooks = [
            classifier.register_forward_hook(forward_done),
            optimizer.register_step_pre_hook(backward_done),
        ]
        try:
            yield flops
        finally:
            for hook in hooks:
                hook.remove()


_aten = torch.ops.aten
_FORMULAS: dict[Any, Callable[..., int]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)
    ),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, query, key, value, *_, **__: sdpa_backward_flop_count(grad, query, key, value)
    ),
}
