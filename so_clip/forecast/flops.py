"""Counts the floating-point operations of a training step while it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
    shape_wrapper,
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


class FlopCounter(TorchDispatchMode):
    """Counts operations by torch's formulas.

    torch's FlopCounterMode also counts by module, and for that it keeps activations alive, so the
    peak memory of a step cannot be measured beside it.

    Attributes:
        total: the operations until now.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        composite = func.namespace == "aten" and func._overloadpacket not in _FORMULAS
        if composite and torch.is_inference_mode_enabled():
            # Here linear layers and others are one operation; only its parts have formulas.
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        self.add(func, args, kwargs, result)
        return result

    def add(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Count one operation."""
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)


@contextmanager
def counted(module: nn.Module, counter: FlopCounter) -> Iterator[FlopCounter]:
    """Count in this context the operations inside a module's forward pass separately."""
    inside = FlopCounter()

    def begin(*_: Any) -> None:
        inside.total -= counter.total

    def end(*_: Any) -> None:
        inside.total += counter.total

    hooks = [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    try:
        yield inside
    finally:
        for hook in hooks:
            hook.remove()


_aten = torch.ops.aten
# torch has no formulas for the attention kernels of the CPU.
CPU_ATTENTION: dict[Any, Callable[..., int]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)
    ),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, query, key, value, *_, **__: sdpa_backward_flop_count(grad, query, key, value)
    ),
}
_FORMULAS: dict[Any, Callable[..., int]] = flop_registry | {
    operation: shape_wrapper(formula) for operation, formula in CPU_ATTENTION.items()
}
