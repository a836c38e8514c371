"""Build models on fake tensors, which have shapes and no values."""

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


class RealNumbers(TorchFunctionMode):
    """Keeps short lists of numbers real inside FakeTensorMode.

    timm reads the drop rates of its blocks out of torch.linspace, and a fake tensor has no values.
    Operations on real tensors alone stay real, too.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call an operation of torch, without fake tensors where it needs none."""
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        is_real = bool(tensors) and not any(isinstance(x, FakeTensor) for x in tensors)
        if func is torch.linspace or is_real:
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        return func(*args, **kwargs)
