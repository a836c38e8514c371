"""Records the storages that operations allocate."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations that need a value or a shape from the device.
READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique")


class Storages(TorchDispatchMode):
    """Records the sizes in bytes of all new storages, except those of the `given` tensors.

    Args:
        given: tensors whose storages do not count.
        may_read: False fails on operations that make the host wait for a device.
    """

    def __init__(self, *given: Tensor, may_read: bool = True) -> None:
        super().__init__()
        self.sizes: set[int] = set()
        self.may_read = may_read
        self._given = {tensor.untyped_storage().data_ptr() for tensor in given}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not self.may_read:
            assert not any(read in func.name() for read in READS), func.name()
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            # Sparse tensors have no single storage.
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                storage = leaf.untyped_storage()
                if storage.data_ptr() not in self._given:
                    self.sizes.add(storage.nbytes())
        return result
