"""The images of tasks: decoded ahead by threads, kept within a budget, cropped for their use.

Tensor names end in their shape: S few-shot images, Q query images, C H W pixels.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from so_clip.data.crop_products import cropped
from so_clip.data.episodes.sampler import EpisodeDraw
from so_clip.data.image_memory import MIB
from so_clip.data.images import ImageSource
from so_clip.data.transforms import RandomResizedCrop, TestPixels
from so_clip.system.threads import groups_ahead

Pixels = npt.NDArray[np.uint8]


class TaskImages(NamedTuple):
    """A drawn task and its square images, uint8 on the device."""

    draw: EpisodeDraw
    images_SCHW: Tensor
    images_QCHW: Tensor


class KeptPixels:
    """Keeps the first arrays that fit into a budget. Threads may share it.

    Args:
        budget_mib: limit of all arrays together, MiB.
    """

    def __init__(self, budget_mib: float) -> None:
        self._left_bytes = budget_mib * MIB
        self._kept: dict[Any, Pixels] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Any, make: Callable[[], Pixels]) -> Pixels:
        """Return the array of a key: the kept one, or a new one. It is kept if it fits."""
        found = self._kept.get(key)
        if found is not None:
            return found
        pixels = make()
        with self._lock:
            if key not in self._kept and pixels.nbytes <= self._left_bytes:
                self._kept[key] = pixels
                self._left_bytes -= pixels.nbytes
        return pixels


class EpisodeImages:
    """Reads the images of drawn tasks; the images of the next task are decoded meanwhile.

    Args:
        images: the source of each dataset's images. It must allow calls from several threads.
        kept: decoded images: originals for training, squares for tests.
        workers: decoding threads; 0 decodes in the calling thread.
        device: of the images that are returned.
    """

    def __init__(
        self,
        images: Mapping[str, ImageSource],
        kept: KeptPixels,
        workers: int,
        device: torch.device,
    ) -> None:
        self._images, self._kept = dict(images), kept
        self._workers, self._device = workers, device

    def cropped(
        self, draws: Iterable[EpisodeDraw], crop: RandomResizedCrop, seed: int
    ) -> Generator[TaskImages, None, None]:
        """Yield each task with random crops. They depend on the seed and the task's number only.

        Raises:
            InputError: the first image, in order, that cannot be read.
        """
        with closing(self._ahead(draws, "original", _original)) as tasks:
            for draw, originals in tasks:
                generator = torch.Generator().manual_seed(crop_seed(seed, draw.number))
                images = [torch.from_numpy(pixels) for pixels in originals]
                squares = cropped(crop, images, generator, self._device)
                few_shot = len(draw.few_shot)
                yield TaskImages(draw, squares[:few_shot], squares[few_shot:])

    def squares(
        self, draws: Iterable[EpisodeDraw], pixels: TestPixels
    ) -> Generator[TaskImages, None, None]:
        """Yield each task with the test transform of a model; raises as `cropped` does."""

        def square(source: ImageSource, path: str) -> Pixels:
            return _channels_first(pixels.square(source.read(path)))

        with closing(self._ahead(draws, "square", square)) as tasks:
            for draw, arrays in tasks:
                all_CHW = torch.from_numpy(np.stack(arrays)).to(self._device)
                few_shot = len(draw.few_shot)
                yield TaskImages(draw, all_CHW[:few_shot], all_CHW[few_shot:])

    def _ahead(
        self,
        draws: Iterable[EpisodeDraw],
        kind: str,
        decode: Callable[[ImageSource, str], Pixels],
    ) -> Generator[tuple[EpisodeDraw, list[Pixels]], None, None]:
        begun: deque[EpisodeDraw] = deque()

        def paths() -> Iterator[list[tuple[str, str]]]:
            for draw in draws:
                begun.append(draw)
                yield [(draw.source, example.path) for example in (*draw.few_shot, *draw.queries)]

        def read(place: tuple[str, str]) -> Pixels:
            source, path = place
            return self._kept.get((kind, *place), lambda: decode(self._images[source], path))

        with closing(groups_ahead(read, paths(), self._workers)) as decoded:
            for arrays in decoded:
                yield begun.popleft(), arrays


def crop_seed(seed: int, number: int) -> int:
    """Return the seed of a task's crops, from those of the run and the number of the task."""
    digest = hashlib.sha256(f"{seed}/crops/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # torch takes 63 bits


def _original(source: ImageSource, path: str) -> Pixels:
    return _channels_first(source.read(path))


def _channels_first(image: Any) -> Pixels:
    # NumPy copies: torch would start its own threads in every decoding thread.
    return np.array(np.asarray(image).transpose(2, 0, 1), order="C")
