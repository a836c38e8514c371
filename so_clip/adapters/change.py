"""The change of one tensor from the base to the adapted model, in the smaller of two forms.

A change is base + delta, and the exact new values of the few entries for which that sum rounds to
another number. Deltas can be scaled and added up; exact values make the adapted tensor equal bit
for bit.

Tensor names end in their shape: N entries of a flat tensor, M moved entries, X exact entries, Y
entries of both kinds.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

# The integers of the same size, to compare numbers bit by bit: -0.0 differs from 0.0.
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_GAPS = (torch.uint8, torch.uint16, torch.uint32)


@dataclass(frozen=True, eq=False)
class Change:
    """The change of one tensor. All parts are on the CPU.

    Attributes:
        shape: of the tensor.
        delta: new minus base, in float32 (float64 for float64 tensors): `delta_M` at `index_M`, or
            the whole tensor, flat, if `index_M` is None.
        index_M: ascending indices into the flat tensor, int64.
        exact_index_X: ascending indices, int64.
        exact_X: the new values at `exact_index_X`, in the tensor's type.
    """

    shape: tuple[int, ...]
    delta: Tensor
    index_M: Tensor | None
    exact_index_X: Tensor
    exact_X: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """The type of the tensor."""
        return self.exact_X.dtype

    @property
    def nbytes(self) -> int:
        """Bytes in a file."""
        parts = [self.delta, self.exact_X]
        parts += [
            to_gaps(index) for index in (self.index_M, self.exact_index_X) if index is not None
        ]
        return sum(part.nbytes for part in parts)

    @torch.no_grad()
    def undo_of(self, tensor: Tensor) -> "Undo":
        """Return the values that `write_into` will replace. It can stop halfway."""
        flat_N, device = tensor.detach().reshape(-1), tensor.device
        if self.index_M is None:
            return Undo(flat_N.clone())
        index_Y = torch.cat([self.index_M, self.exact_index_X]).to(device)
        return Undo(flat_N[index_Y], index_Y)

    @torch.no_grad()
    def write_into(self, tensor: Tensor) -> bool:
        """Add the change to a tensor in place; return whether the sums are finite.

        Args:
            tensor: of this shape and type, on any device and in any memory layout.
        """
        delta = self.delta.to(tensor.device)
        with _flat(tensor) as flat_N:
            if self.index_M is None:
                sum_M = (flat_N.to(delta.dtype) + delta).to(self.dtype)
                flat_N.copy_(sum_M)
            else:
                index_M = self.index_M.to(tensor.device)
                sum_M = (flat_N[index_M].to(delta.dtype) + delta).to(self.dtype)
                flat_N[index_M] = sum_M
            if len(self.exact_X):
                flat_N[self.exact_index_X.to(tensor.device)] = self.exact_X.to(tensor.device)
        return bool(torch.isfinite(sum_M).all())


@dataclass(frozen=True, eq=False)
class Undo:
    """The values of a tensor that a change replaces, Y of them.

    Attributes:
        before: the values at `index_Y`, or those of whole rows, flat, if `index_Y` is None.
        index_Y: indices into the flat tensor.
        rows: first row, and the row after the last; None: all.
    """

    before: Tensor
    index_Y: Tensor | None = None
    rows: tuple[int, int] | None = None

    @torch.no_grad()
    def __call__(self, tensor: Tensor) -> None:
        """Put the values back into the tensor, which may be on another device meanwhile."""
        rows = tensor if self.rows is None else tensor[slice(*self.rows)]
        before = self.before.to(rows)
        with _flat(rows) as flat_N:
            if self.index_Y is None:
                flat_N.copy_(before)
            else:
                flat_N[self.index_Y.to(rows.device)] = before


@contextmanager
def _flat(tensor: Tensor) -> Iterator[Tensor]:
    """Give the entries of a tensor as one dimension, to write to."""
    flat_N = tensor.reshape(-1)
    yield flat_N
    if not tensor.is_contiguous():  # reshape has made a copy
        tensor.copy_(flat_N.view(tensor.shape))


@torch.no_grad()
def change_between(base: Tensor, new: Tensor) -> Change | None:
    """Return the change from `base` to `new`, bit for bit; None if they are equal.

    Args:
        base, new: of one shape and one floating-point type, on the CPU.
    """
    base_N, new_N = base.detach().reshape(-1), new.detach().reshape(-1)
    index_M = _differs(base_N, new_N).nonzero().view(-1)
    if not len(index_M):
        return None
    wide = torch.promote_types(base.dtype, torch.float32)
    sparse = index_M, new_N[index_M].to(wide) - base_N[index_M].to(wide)
    gaps = to_gaps(index_M)
    is_sparse = gaps.nbytes + sparse[1].nbytes < len(base_N) * sparse[1].itemsize
    if is_sparse:
        places_M, delta = sparse
        sum_M = (base_N[places_M].to(wide) + delta).to(base.dtype)
        exact_index_X = places_M[_differs(sum_M, new_N[places_M])]
    else:
        delta = new_N.to(wide) - base_N.to(wide)
        sum_N = (base_N.to(wide) + delta).to(base.dtype)
        exact_index_X = _differs(sum_N, new_N).nonzero().view(-1)
    return Change(
        tuple(base.shape),
        delta,
        index_M if is_sparse else None,
        exact_index_X,
        new_N[exact_index_X],
    )


def combined(changes: Sequence[tuple[Change, float]]) -> Change:
    """Return the sum of weighted changes of one tensor. Without exact values: it has no original.

    Args:
        changes: pairs of a change and its weight, at least one, all of one shape and type.
    """
    first = changes[0][0]
    if len(changes) == 1 and changes[0][1] == 1:
        return first
    none_X = first.exact_index_X[:0], first.exact_X[:0]
    if all(change.index_M is not None for change, _ in changes):
        joined = torch.cat([change.index_M for change, _ in changes if change.index_M is not None])
        index_M, place = joined.unique(return_inverse=True)
        delta_M = torch.zeros(len(index_M), dtype=torch.float64)
        delta_M.index_add_(0, place, torch.cat([w * c.delta.double() for c, w in changes]))
        return Change(first.shape, delta_M.to(first.delta.dtype), index_M, *none_X)
    total_N = torch.zeros(torch.Size(first.shape).numel(), dtype=torch.float64)
    for change, weight in changes:
        delta = weight * change.delta.double()
        if change.index_M is None:
            total_N += delta
        else:
            total_N[change.index_M] += delta
    return Change(first.shape, total_N.to(first.delta.dtype), None, *none_X)


def to_gaps(index_M: Tensor) -> Tensor:
    """Return ascending indices as the first index and the gaps, in the smallest unsigned type."""
    gaps_M = index_M.diff(prepend=index_M.new_zeros(1))
    largest = int(gaps_M.max()) if len(gaps_M) else 0
    return gaps_M.to(next(kind for kind in _GAPS if largest <= torch.iinfo(kind).max))


def from_gaps(gaps_M: Tensor) -> Tensor:
    """Return the indices, int64, that `to_gaps` has turned into gaps."""
    return gaps_M.long().cumsum(0)


def _differs(one: Tensor, other: Tensor) -> Tensor:
    kind = _BITS[one.element_size()]
    return one.contiguous().view(kind) != other.contiguous().view(kind)
