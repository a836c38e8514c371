"""Which entries of a tensor are sampled: how many, and uniform draws of them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

# Random integers are drawn below this power of two, which torch does without bias, and taken modulo
# numel: one entry is at most numel / 2^62 more likely than another.
_HIGH = 2**62


def entry_count(numel: int, density_ratio: float) -> int:
    """Return M, the number of entries sampled out of `numel`: int(numel * density_ratio), but >= 1.

    The released code of SO has no lower bound, so that small tensors are silently never trained.
    """
    return min(numel, max(1, int(numel * density_ratio)))


def draw_supports(
    numels: Sequence[int], sizes: Sequence[int], generator: torch.Generator
) -> list[Tensor]:
    """Draw, for each tensor, a subset of its entries uniformly among all subsets of that size.

    All happens in host memory, so that the CPU and CUDA, and all ranks of a data-parallel run, draw
    the same supports, and so that no device is waited for. Work and memory are proportional to
    the number of entries drawn, never to numel.

    Why it is uniform: draw with replacement, keep every distinct entry, draw again in place of the
    repeats, until there are none. Nothing here depends on an entry's name: renaming the entries
    by a permutation renames the outcome by it. So all subsets that a permutation can turn
    into one another, which is all subsets of that size, are equally likely.

    Args:
        numels: entries of each tensor.
        sizes: entries to draw from each, at most its numel.
        generator: a CPU generator; it alone is advanced.

    Returns:
        One int64 CPU tensor [size] of ascending flat indices for each tensor.
    """
    if isinstance(torch.empty(0), FakeTensor):
        # Among tensors without values, as in a forecast, there is nothing to draw but sizes.
        return [torch.empty(size, dtype=torch.int64) for size in sizes]
    # Beyond half of a tensor the repeats would take over; there the entries left out are drawn.
    drawn = [min(size, numel - size) for numel, size in zip(numels, sizes, strict=True)]
    span_E = np.repeat(np.asarray(numels, dtype=np.int64), drawn)
    # Laid end to end, tensors occupy ranges of one index space: a sort keeps each range in place.
    base_E = np.repeat(np.cumsum([0, *numels], dtype=np.int64)[:-1], drawn)
    flat_E = base_E + _integers(len(span_E), generator) % span_E
    flat_E.sort()
    while len(repeats := np.flatnonzero(flat_E[1:] == flat_E[:-1])):
        flat_E[repeats] = base_E[repeats] + _integers(len(repeats), generator) % span_E[repeats]
        flat_E.sort()
    picked: list[np.ndarray] = np.split(flat_E - base_E, np.cumsum(drawn))[:-1]
    return [
        torch.from_numpy(
            indices
            if len(indices) == size
            else np.delete(np.arange(numel, dtype=np.int64), indices)
        )
        for indices, numel, size in zip(picked, numels, sizes, strict=True)
    ]


def _integers(count: int, generator: torch.Generator) -> np.ndarray:
    return torch.randint(_HIGH, (count,), generator=generator).numpy()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a CPU tensor to a device without waiting for it."""
    if device.type == "cuda":
        # From pageable memory, even a "non-blocking" copy waits for the stream.
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
