"""One buffer for many weights, so that one operation reads or writes entries of all of them.

An arena moves weights of one dtype and device into one flat buffer. The parameters stay the same
objects, with the same names, shapes and values; they become views of the buffer. The last slot of
the buffer belongs to no weight: the entries that pad a row point to it.

A half-precision copy of the buffer holds what a cast of the weights would give. A sparse optimizer
keeps it up to date by writing the few entries that it moves. So a forward pass under autocast reads
the copy and casts no weight.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

# The arena of each packed weight, and the weight's place in it.
_places: "WeakTensorKeyDictionary" = WeakTensorKeyDictionary()


class Arena:
    """A flat buffer with the weights of one dtype and device.

    Args:
        params: weights that `can_move` allows; they become views of the buffer.

    Attributes:
        flat: the buffer [N + 1], for N weights in all.
        half: its copy in half precision, or None; see `add_half`.
        scratch: the index of the last slot.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        total = sum(param.numel() for param in params)
        self.flat = params[0].new_zeros(total + 1)
        self.half: Tensor | None = None
        self.scratch = total
        self._params = WeakTensorKeyDictionary()  # param -> its version that `half` has
        offset = 0
        for param in params:
            end = offset + param.numel()
            place = self.flat[offset:end].view(param.shape)
            place.copy_(param.detach())
            param.data = place
            _places[param] = (self, offset)
            self._params[param] = -1
            offset = end

    @staticmethod
    def can_move(param: Tensor) -> bool:
        """Return whether a weight can move: it is contiguous and shares its storage with no tensor.

        A view of the weight counts too: it would keep the old storage.
        """
        whole = param.untyped_storage().nbytes() == param.nbytes
        return whole and param.is_contiguous() and _users(param) == _users(torch.empty(1))

    @staticmethod
    def of(param: Tensor) -> "Arena | None":
        """Return the arena that has this weight, or None. `module.to(...)` takes a weight out."""
        found = _places.get(param)
        if found is None:
            return None
        arena, offset = found
        storage, own = arena.flat.untyped_storage(), param.untyped_storage()
        in_place = own._cdata == storage._cdata and param.storage_offset() == offset
        return arena if in_place else None

    @staticmethod
    def offset(param: Tensor) -> int:
        """Return the place of a weight's first entry in its arena."""
        offset: int = _places[param][1]
        return offset

    def add_half(self, dtype: torch.dtype) -> None:
        """Add a copy of the buffer in half precision."""
        self.half = self.flat.to(dtype)
        self.note_writes(list(self._params))

    def half_of(self, param: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Return `param.to(dtype)`, of the weight's shape; None without a copy of this dtype.

        It is a view of the copy: do not write to it. If other code has written to the weight since
        the last `refresh`, the result is a cast of the weight.
        """
        if self.half is None or self.half.dtype != dtype:
            return None
        if self._params[param] != param._version:
            # All parts of the copy have one version. A write to this part would make the backward
            # pass of a layer that has read another part fail.
            return param.detach().to(dtype)
        return self._part(self.half, param)

    def refresh(self) -> None:
        """Cast those weights again that other code has written to."""
        if self.half is None:
            return
        stale = [param for param, version in self._params.items() if version != param._version]
        for param in stale:
            if Arena.of(param) is self:  # another tensor's part may be beside its old place
                self._part(self.half, param).copy_(param.detach())
        self.note_writes(stale)

    def note_writes(self, params: Sequence[Tensor]) -> None:
        """Record that buffer and copy have the present values of these weights."""
        for param in params:
            self._params[param] = param._version

    def _part(self, buffer: Tensor, param: Tensor) -> Tensor:
        offset = Arena.offset(param)
        return buffer[offset : offset + param.numel()].view(param.shape)


def _users(tensor: Tensor) -> int:
    """Return the number of references to a tensor's storage. Compare it for equality only."""
    users: int = torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)
    return users


class PackedWeights:
    """R weights of one arena, read and written together.

    Args:
        arena: the arena that has all these weights.
        params: the weights, one per row.
    """

    def __init__(self, arena: Arena, params: Sequence[Tensor]) -> None:
        self.arena = arena
        offsets = [Arena.offset(param) for param in params]
        self.offset_R1 = torch.tensor(offsets, device=arena.flat.device)[:, None]

    def read(self, index_RM: Tensor) -> Tensor:
        """Return the entries at these flat indices of each weight."""
        return self.arena.flat.take(index_RM + self.offset_R1)

    def subtract(self, index_RM: Tensor, values_RM: Tensor) -> None:
        """Subtract values from the entries at these flat indices, in buffer and copy.

        A buffer of fewer bits than the values is rounded once, after the subtraction.
        """
        flat, half = self.arena.flat, self.arena.half
        where_E = (index_RM + self.offset_R1).view(-1)
        if flat.dtype == values_RM.dtype:
            flat.index_add_(0, where_E, values_RM.view(-1), alpha=-1)
        else:
            new_E = flat.take(where_E).to(values_RM.dtype) - values_RM.view(-1)
            flat.index_copy_(0, where_E, new_E.to(flat.dtype))
        if half is not None:
            half.index_copy_(0, where_E, flat.take(where_E).to(half.dtype))
