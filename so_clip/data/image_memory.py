"""Training images in memory, or streamed: decoded for every batch, ahead of its use."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from so_clip.data.examples import Example
from so_clip.data.images import ImageSource, load_uint8, to_tensor
from so_clip.system.threads import groups_ahead

if TYPE_CHECKING:
    from torch import Tensor

MIB = 2**20
# The automatic budget: at most this many MiB, and at most this share of the machine's memory for
# all parallel runs together.
MOST_MIB, SHARE = 4096.0, 0.25
# The memory limit of a container, in both versions of Linux's control groups.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def auto_budget_mib(parallel_runs: int = 1) -> float:
    """Return the default budget of training images: 4096 MiB, or a quarter of the memory.

    Args:
        parallel_runs: the number of runs that share that quarter.
    """
    sizes = []
    with suppress(OSError, ValueError, AttributeError):  # not every system has these
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for file in _LIMITS:
        with suppress(OSError, ValueError):  # "max" is not a number
            sizes.append(int(Path(file).read_text(encoding="ascii")))
    return min([MOST_MIB, *(SHARE * size / MIB / parallel_runs for size in sizes)])


class StreamedImages:
    """Decodes the tensors of `load_uint8` on demand, and keeps none of them.

    Args:
        images: the source of the images; `read` must allow calls from several threads.
        examples: the images.
        workers: decoding threads; at least one is used.
    """

    def __init__(self, images: ImageSource, examples: Sequence[Example], workers: int) -> None:
        self._images = images
        self._paths = [example.path for example in examples]
        self._workers = max(1, workers)

    def __len__(self) -> int:
        return len(self._paths)

    def groups(self, chosen: Iterable[Sequence[int]]) -> Iterator[list["Tensor"]]:
        """Yield the images of each group of indices, [3, height, width] uint8 each, on the CPU.

        The next group is decoded while a group is in use. Memory holds at most three groups.

        Raises:
            InputError: the first image, in order, that cannot be read.
        """

        def decode(index: int) -> "Tensor":
            return to_tensor(self._images.read(self._paths[index]))

        return groups_ahead(decode, chosen, self._workers)


def training_images(
    images: ImageSource,
    examples: Sequence[Example],
    budget_mib: float | None,
    workers: int,
    parallel_runs: int = 1,
    progress: bool = True,
) -> "list[Tensor] | StreamedImages":
    """Return the images of a few-shot draw in memory, or a stream if they are too large.

    Args:
        images, examples: see `load_uint8`.
        budget_mib: limit of all decoded images together, MiB; None: see auto_budget_mib.
        workers: decoding threads of the stream.
        parallel_runs: the number of runs that share this machine's memory.
        progress: show a bar on stderr.

    Raises:
        InputError: the first image, in order, that cannot be read.
    """
    budget_mib = auto_budget_mib(parallel_runs) if budget_mib is None else budget_mib
    kept = load_uint8(images, examples, progress, budget_bytes=budget_mib * MIB)
    return StreamedImages(images, examples, workers) if kept is None else kept
