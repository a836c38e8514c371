"""The operations that torch dispatches, without views: on a GPU, about the launches."""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Dispatched(TorchDispatchMode):
    """Records the names of operations with a result of their own, or that write to a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        writes = any(argument.is_write for argument in func._schema.arguments)
        if writes or _storages(result) - _storages((args, kwargs)):
            self.names.append(func.name().removeprefix("aten::"))
        return result


def _storages(values: Any) -> set[int]:
    tensors = (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
    return {tensor.untyped_storage()._cdata for tensor in tensors}
