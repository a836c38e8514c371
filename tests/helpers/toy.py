"""A classifier small enough to follow by hand, for the tests of the loop and of evaluation."""

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# What makes the host wait for a device when called on one of its tensors.
READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__")


class Toy(nn.Module):
    """One matrix from the pixels to the classes; `weight_KP` starts at zero."""

    def __init__(self, classes: int = 3, pixels: int = 12) -> None:
        super().__init__()
        self.weight_KP = nn.Parameter(torch.zeros(classes, pixels))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return nn.functional.linear(images_BCHW.flatten(1) / 255, self.weight_KP)


class TwoLayers(nn.Module):
    """Two matrices of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(12, 10), nn.Linear(10, 3)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.last(self.first(images_BCHW.flatten(1) / 255).relu())


class Given:
    """Batches that are the same in every epoch."""

    def __init__(self, *batches: tuple[Tensor, Tensor]) -> None:
        self.batches = batches

    def epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)


def random_batches(sizes: list[int], seed: int = 0) -> Given:
    """Return batches of random 2x2 images; the label says which third of the pixels is bright."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for size in sizes:
        labels_B = torch.randint(3, (size,), generator=generator)
        images_BCHW = torch.randint(128, (size, 3, 2, 2), generator=generator, dtype=torch.uint8)
        images_BCHW[torch.arange(size), labels_B] += 120
        batches.append((images_BCHW, labels_B))
    return Given(*batches)


class CountReads:
    """Counts, by name, the calls that read a tensor's values on the host."""

    def __init__(self) -> None:
        self.counts = counts = Counter[str]()

        class Functions(TorchFunctionMode):
            def __torch_function__(self, func, types, args=(), kwargs=None):
                name = getattr(func, "__name__", "")
                counts[name] += name in READS
                return func(*args, **(kwargs or {}))

        class Operations(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                # The calls in which reads from C++ end, such as those of Adam's step.
                counts["in C++"] += func is torch.ops.aten._local_scalar_dense.default
                return func(*args, **(kwargs or {}))

        self._modes = (Functions(), Operations())

    def __enter__(self) -> Counter[str]:
        for mode in self._modes:
            mode.__enter__()
        return self.counts

    def __exit__(self, *error: object) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)
        for name in [name for name, count in self.counts.items() if not count]:
            del self.counts[name]
