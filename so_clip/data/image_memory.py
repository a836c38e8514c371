"""Training images that are too large to be kept: decoded for every batch, ahead of its use."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from so_clip.data.examples import Example
from so_clip.data.images import ImageSource, load_uint8, to_tensor

if TYPE_CHECKING:
    from torch import Tensor

MIB = 2**20
# Of an automatic budget: so much at most, and no more than such a part of the machine's memory, for
# all runs that are done at the same time.
MOST_MIB, SHARE = 4096.0, 0.25
# What a container may use, in both versions of Linux's control groups.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def auto_budget_mib(at_once: int = 1) -> float:
    """Return what training images may take by default: 4096 MiB, or a quarter of the memory.

    Args:
        at_once: how many runs share that quarter.
    """
    sizes = []
    with suppress(OSError, ValueError, AttributeError):  # not every system tells
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for file in _LIMITS:
        with suppress(OSError, ValueError):  # "max" is no number
            sizes.append(int(Path(file).read_text(encoding="ascii")))
    return min([MOST_MIB, *(SHARE * size / MIB / at_once for size in sizes)])


class StreamedImages:
    """Gives the very tensors that `load_uint8` would, when they are asked for, and keeps none.

    Args:
        images: where to read them; `read` must allow calls from several threads.
        examples: what to read.
        workers: decoding threads, at least one is used.
    """

    def __init__(self, images: ImageSource, examples: Sequence[Example], workers: int) -> None:
        self._images = images
        self._paths = [example.path for example in examples]
        self._workers = max(1, workers)

    def __len__(self) -> int:
        return len(self._paths)

    def groups(self, chosen: Iterable[Sequence[int]]) -> Iterator[list["Tensor"]]:
        """Yield the images of each group of places, [3, height, width] uint8 each, on the CPU.

        While a group is in use, the next is decoded; memory holds these two, and the one after.

        Raises:
            InputError: the first image, in order, that cannot be read.
        """
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="decode")
        pending: deque[Iterator[Tensor]] = deque()
        try:
            for group in chosen:
                pending.append(pool.map(self._decode, group))
                if len(pending) > 1:
                    yield list(pending.popleft())
            while pending:
                yield list(pending.popleft())
        finally:
            # Who asked may stop early, or an image may be unreadable: drop what is queued.
            pool.shutdown(cancel_futures=True)

    def _decode(self, place: int) -> "Tensor":
        return to_tensor(self._images.read(self._paths[place]))


def training_images(
    images: ImageSource,
    examples: Sequence[Example],
    budget_mib: float | None,
    workers: int,
    at_once: int = 1,
) -> "list[Tensor] | StreamedImages":
    """Return the images of a few-shot draw: in memory, or what streams them if they are too large.

    Args:
        images, examples: see `load_uint8`.
        budget_mib: what all of them may take, decoded, MiB; None: see auto_budget_mib.
        workers: decoding threads of the stream.
        at_once: how many runs share this machine's memory.

    Raises:
        InputError: the first image, in order, that cannot be read.
    """
    budget_mib = auto_budget_mib(at_once) if budget_mib is None else budget_mib
    kept = load_uint8(images, examples, budget_bytes=budget_mib * MIB)
    return StreamedImages(images, examples, workers) if kept is None else kept
