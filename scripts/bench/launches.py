"""The operations that a training step dispatches: on a GPU, about the kernels that it launches.

A GPU waits for its host whenever a kernel takes less time than its launch. Operations are counted
without a GPU, on fake tensors.
"""

from collections import Counter
from typing import Any

from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NAMESPACE = "so_clip"  # of custom operators that are opened


class LaunchCounter(TorchDispatchMode):
    """Counts dispatched operations, real or fake.

    A view is left out: its result shares memory with an argument, and nothing is written. A custom
    operator of so_clip is not counted itself; the operations inside it are. A call for a list of
    tensors (`_foreach_*`, `_fused_*`) is one operation, though torch launches a few kernels for a
    long list. Memory without values (`empty`) is counted, though nothing is launched.

    Attributes:
        counts: the number of each operation, by its part of the step and its name.
        part: of the step, for the operations that come next.
    """

    def __init__(self, part: str = "") -> None:
        super().__init__()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.part = part

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == NAMESPACE:
            with self:
                return OPDEFS[func._name.partition(".")[0]]._init_fn(*args, **kwargs)
        result = func(*args, **kwargs)
        if func.namespace != "prim" and not is_view(func, (args, kwargs), result):
            self.note(func)
        return result

    def note(self, func: OpOverload) -> None:
        """Count one operation."""
        self.counts[self.part, str(func)] += 1

    def total(self, part: str | None = None) -> int:
        """Return the number of operations in a part of the step; None: in all."""
        return sum(n for (where, _), n in self.counts.items() if part in (None, where))


def is_view(func: OpOverload, inputs: Any, result: Any) -> bool:
    """Return whether an operation only shows the memory of an argument in another way.

    torch's schema says so for most; the memory itself shows it for others (`_unsafe_view`).
    """
    schema = func._schema
    if not _storages((inputs, result)):
        return True  # of no tensor, such as promote_types
    if any(argument.is_write for argument in schema.arguments):
        return False
    if schema.returns and all(returned.alias_info is not None for returned in schema.returns):
        return True
    results = _storages(result)
    return bool(results) and results <= _storages(inputs)


def _storages(values: Any) -> set[int]:
    tensors = (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
    return {tensor.untyped_storage()._cdata for tensor in tensors}
