"""Build models on tensors without values: fake ones, and those of the meta device."""

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

# The last steps of all initialisations: they change values, and no shape.
_FILLS = frozenset(
    {
        *("fill_", "zero_", "uniform_", "normal_", "copy_", "erfinv_"),
        *("constant_", "kaiming_uniform_", "add_", "sub_", "mul_", "div_", "clamp_"),
    }
)


class RealNumbers(TorchFunctionMode):
    """Keeps short lists of numbers real inside FakeTensorMode, and fills no tensor without values.

    timm reads the drop rates of its blocks out of torch.linspace, and a fake tensor has no values.
    Operations on real tensors alone stay real, too. Filling the weights would take most of the time
    of a build without weights.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call an operation of torch, without fake tensors where it needs none."""
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _FILLS:
            filled = args[0] if args else kwargs["tensor"]
            if isinstance(filled, FakeTensor) or filled.is_meta:
                return filled
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        is_real = bool(tensors) and not any(isinstance(x, FakeTensor) for x in tensors)
        if func is torch.linspace or is_real:
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        return func(*args, **kwargs)
