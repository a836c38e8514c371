"""The choice of a fixed number of entries among those of some parameters.

Tensor names end in their shape: C candidates of one parameter, M chosen entries of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Candidates:
    """The entries of one parameter that can be chosen: all, or ranges of its flat entries.

    Attributes:
        name: of the parameter.
        parameter: the tensor.
        ranges: the first flat index, and the index after the last one, of each range; ascending.
    """

    name: str
    parameter: Tensor
    ranges: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        """C."""
        return sum(end - first for first, end in self.ranges)

    def values_of(self, tensor: Tensor) -> Tensor:
        """Return the candidates' values [C] in a tensor of the parameter's shape."""
        flat = tensor.detach().reshape(-1)
        return torch.cat([flat[first:end] for first, end in self.ranges])

    def index_of(self, place_M: Tensor) -> Tensor:
        """Return the flat indices of the candidates at places [M] in 0..C-1, both ascending."""
        index_M, before = place_M.clone(), 0
        for first, end in self.ranges:
            inside_M = (place_M >= before) & (place_M < before + end - first)
            index_M = torch.where(inside_M, place_M + (first - before), index_M)
            before += end - first
        return index_M


def shares(count: int, numels: Sequence[int]) -> list[int]:
    """Split a count in proportion to sizes, up to rounding, by largest remainders.

    Args:
        count: at most the sum of the sizes.
        numels: the sizes.
    """
    total = sum(numels)
    parts = [count * numel // total for numel in numels]
    # Integers, because a float's remainder would depend on its rounding.
    order = sorted(range(len(numels)), key=lambda i: (-(count * numels[i] % total), i))
    for i in order[: count - sum(parts)]:
        parts[i] += 1
    return parts


def largest(scores: Sequence[Tensor], count: int, seed: int) -> list[Tensor]:
    """Return the places of the `count` largest scores of all tensors. Equal scores are drawn.

    Args:
        scores: one tensor [C] for each parameter, finite.
        count: from 0 to the number of all scores.
        seed: of the draw among scores that equal the smallest chosen one.

    Returns:
        Ascending int64 CPU tensors [M], one for each parameter.
    """
    if not count:
        return [torch.empty(0, dtype=torch.int64) for _ in scores]
    tops = torch.cat([score_C.topk(min(count, len(score_C))).values for score_C in scores])
    least = tops.topk(count).values[-1]
    above = [(score_C > least).nonzero().view(-1).cpu() for score_C in scores]
    equal = [(score_C == least).nonzero().view(-1).cpu() for score_C in scores]
    room = count - sum(map(len, above))
    ends = torch.tensor([len(place_E) for place_E in equal]).cumsum(0)
    draws = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(int(ends[-1]), generator=draws)[:room]
    owner = torch.searchsorted(ends, drawn, right=True)
    places = []
    for i, (above_M, equal_E) in enumerate(zip(above, equal, strict=True)):
        own = drawn[owner == i] - (ends[i] - len(equal_E))
        places.append(torch.cat([above_M, equal_E[own]]).sort().values)
    return places


def split_places(place: Tensor, numels: Sequence[int]) -> list[Tensor]:
    """Split places among the entries of several tensors into places in each tensor.

    Args:
        place: ascending.
        numels: entries of each tensor.
    """
    ends = torch.tensor(numels).cumsum(0)
    cuts = torch.searchsorted(place, ends[:-1]).tolist()
    starts = [0, *ends[:-1].tolist()]
    return [part - start for part, start in zip(place.tensor_split(cuts), starts, strict=True)]
