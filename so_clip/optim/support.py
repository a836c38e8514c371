"""Supports: the number of entries sampled of a tensor, and uniform draws of them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

# torch draws random integers below this power of two without bias. They are taken modulo numel: one
# entry is at most numel / 2^62 more likely than another.
_HIGH = 2**62


def entry_count(numel: int, density_ratio: float, least: int = 1) -> int:
    """Return M, the number of entries sampled of a tensor: max(least, int(numel · κ)).

    The released code of SO has no lower bound (least = 0), so it never trains small tensors.
    """
    return min(numel, max(least, int(numel * density_ratio)))


def draw_supports(
    numels: Sequence[int], sizes: Sequence[int], generator: torch.Generator
) -> list[Tensor]:
    """Draw a subset of each tensor's entries, uniform among all subsets of its size.

    The draw happens in host memory. So the CPU and CUDA, and all ranks of a data-parallel run, draw
    the same supports, and no draw waits for a device. Work and memory are proportional to the
    number of entries drawn, never to numel.

    Method: draw with replacement, keep every distinct entry, replace repeats by new draws, until
    there are no repeats. The result is uniform because the method treats all entries alike: if a
    permutation renames the entries, it renames the outcome. Permutations turn any subset into any
    other subset of its size, so all of these are equally likely.

    Args:
        numels: entries of each tensor.
        sizes: entries to draw from each tensor, at most its numel.
        generator: a CPU generator; the only random state that advances.

    Returns:
        One int64 CPU tensor [size] of ascending flat indices for each tensor.
    """
    if isinstance(torch.empty(0), FakeTensor):
        # Fake tensors, as in a forecast, have no values: only the sizes matter.
        return [torch.empty(size, dtype=torch.int64) for size in sizes]
    # Above half of a tensor most draws repeat; then the entries to leave out are drawn instead.
    drawn = [min(size, numel - size) for numel, size in zip(numels, sizes, strict=True)]
    span_E = np.repeat(np.asarray(numels, dtype=np.int64), drawn)
    # Each tensor has its own range in one index space, so one sort sorts every tensor's entries.
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


def write_over(old: Tensor, new: Tensor) -> None:
    """Copy a CPU tensor over one on a device without waiting for the device."""
    if old.device.type == "cuda":
        new = new.pin_memory()
    old.copy_(new, non_blocking=True)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device without waiting for the device."""
    if device.type == "cuda":
        # From pageable memory, even a "non-blocking" copy waits for the stream.
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
