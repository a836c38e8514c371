"""Batches: the few training images with new crops every epoch, and the stream of test images."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import repeat

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from so_clip.data.cache.decode_cache import DecodeCache, DecodedPass, images_sha256
from so_clip.data.cache.decoded_file import Layout
from so_clip.data.crop_products import ImageBlocks, cropped, stored_bytes, uses_products
from so_clip.data.epochs import Epochs
from so_clip.data.examples import Example
from so_clip.data.image_memory import StreamedImages
from so_clip.data.images import ImageSource
from so_clip.data.transforms import RandomResizedCrop, TestPixels
from so_clip.errors import InputError
from so_clip.system.threads import groups_ahead

MIB = 2**20
Pixels = npt.NDArray[np.uint8]


class TrainBatches(Epochs):
    """Shuffled, augmented batches of the few training images, epoch after epoch.

    The images are kept and cropped on the device. Streamed images, and images that need more than
    `image_budget_mib`, stay on the CPU and move to the device for each batch. The batches are the
    same.

    Args:
        images: uint8 tensors [3, height, width] of any sizes, on the CPU; or a stream of them.
        labels: one label per image.
        batch_size: images per batch; the last batch of an epoch may be smaller.
        image_size: side of the cropped square, pixels.
        generator: on the CPU; it alone decides order, crops and flips.
        device: the device of the batches.
        image_budget_mib: limit of the original images on the device, MiB.
        scale: lowest and highest share of an image's area that a crop covers.
        flip: mirror half of the images.
        drop_last: leave out the last batch of an epoch if it is smaller and not the only one.
        crops: random crops of each image in an epoch.
        products: whether to crop by matrix products; None: see uses_products.
    """

    def __init__(
        self,
        images: Sequence[Tensor] | StreamedImages,
        labels: Sequence[int],
        batch_size: int,
        image_size: int,
        generator: torch.Generator,
        device: torch.device | str,
        image_budget_mib: float = 4096,
        scale: tuple[float, float] = (0.08, 1.0),
        flip: bool = True,
        drop_last: bool = False,
        crops: int = 1,
        products: bool | None = None,
    ) -> None:
        if not len(images) or len(images) != len(labels):
            raise InputError(f"{len(images)} training images, but {len(labels)} labels.")
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: must be 1 or more.")
        super().__init__(batch_size, generator, drop_last)
        self.device, self.crops = torch.device(device), crops
        self.crop = RandomResizedCrop(image_size, scale, flip)
        self.streamed = isinstance(images, StreamedImages)
        self.products = uses_products(self.device) if products is None else products
        self.images = (
            images
            if isinstance(images, StreamedImages)
            else _placed(images, self.device, image_budget_mib, self.products)
        )
        self.labels_N = torch.as_tensor(labels, dtype=torch.int64)

    def epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images_BCHW uint8, labels_B int64) on the device; every image comes `crops` times.

        After `load_state_dict` the first epoch is the rest of the loaded epoch. Nothing here waits
        for the device.
        """
        to_skip = self._begin()
        order = self._order_of(len(self.images), self.crops).tolist()
        batches = self._cropped(order, self.generator, to_skip)
        for self._taken, batch in enumerate(batches, start=to_skip + 1):
            yield batch

    def cropped(self, order: Sequence[int], generator: torch.Generator) -> Iterator[Tensor]:
        """Yield images_BCHW on the device: random crops of the images of these indices, in order.

        Args:
            order: indices of images, for any number of batches.
            generator: on the CPU; it alone decides the crops.
        """
        return (images_BCHW for images_BCHW, _ in self._cropped(order, generator))

    def _cropped(
        self, order: Sequence[int], generator: torch.Generator, skipped: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches with their labels; for the first ones, only draw the boxes."""
        store = self.images if isinstance(self.images, ImageBlocks) else None
        originals = self.in_groups(order) if store is None else repeat([])
        for number, (group, images) in enumerate(zip(self._groups(order), originals, strict=False)):
            if number < skipped:
                self.crop.draw([(1, 1)] * len(group), generator)
                continue
            labels_B = self.labels_N[group]
            if store is not None:
                yield store.crop(group, self.crop, generator, labels_B)
            elif self.products:
                blocks = ImageBlocks(images, self.device, staged=True)
                yield blocks.crop(range(len(blocks)), self.crop, generator, labels_B)
            else:
                images_BCHW = cropped(self.crop, images, generator, self.device, products=False)
                yield images_BCHW, labels_B.to(self.device)

    def in_groups(self, order: Sequence[int]) -> Iterator[list[Tensor]]:
        """Yield the images of these indices, one batch at a time, uncropped."""
        groups, images = self._groups(order), self.images
        if isinstance(images, StreamedImages):
            return images.groups(groups)
        return ([images[index] for index in group] for group in groups)

    def _groups(self, order: Sequence[int]) -> list[Sequence[int]]:
        starts = range(0, len(order), self.batch_size)
        return [order[start : start + self.batch_size] for start in starts]


def _placed(
    images: Sequence[Tensor], device: torch.device, image_budget_mib: float, products: bool
) -> list[Tensor] | ImageBlocks:
    # A repeated image is one tensor, and moves once.
    distinct = {id(image): image for image in images}
    needed = (
        stored_bytes(distinct.values())
        if products
        else sum(image.nbytes for image in distinct.values())
    )
    if needed > image_budget_mib * MIB:
        return list(images)
    if products:
        return ImageBlocks(images, device)
    moved = {key: image.to(device) for key, image in distinct.items()}
    return [moved[id(image)] for image in images]


@dataclass(eq=False)
class TestStream:
    """Test images in order, decoded and resized ahead of use by threads, in bounded memory.

    Pillow decodes and resizes without Python's lock, so threads use all cores. Unlike worker
    processes, threads start immediately, need no shared memory, and raise the reader's own error.
    Memory does not depend on the number of images: `prefetch_batches` + 2 batches (among them the
    batch in use and the next one) and one decoded image per worker.

    Args:
        images: the source of the images; `read` must allow calls from several threads.
        examples: the test list.
        pixels: the test transform of the model.
        batch_size: images per batch; the last batch may be smaller.
        workers: decoding threads; 0 decodes in the calling thread.
        pin: put batches into page-locked memory, for fast copies to a CUDA device. Without CUDA it
            has no effect.
        prefetch_batches: batches that are prepared while one is in use.
        cache: keeps decoded images for other passes; None decodes each time.

    Attributes:
        from_cache: the number of images that the last whole pass took from the cache.
    """

    __test__ = False  # not a test class of pytest

    images: ImageSource
    examples: Sequence[Example]
    pixels: TestPixels
    batch_size: int
    workers: int
    pin: bool = False
    prefetch_batches: int = 2
    cache: DecodeCache | None = None
    from_cache: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("workers", 0), ("prefetch_batches", 1)):
            if (value := getattr(self, name)) < least:
                raise InputError(f"{name}={value}: must be {least} or more.")
        self.pin = self.pin and torch.cuda.is_available()

    @cached_property
    def contents_sha256(self) -> str:
        """SHA-256 of the images' files, in order; see images_sha256."""
        paths = [example.path for example in self.examples]
        return images_sha256(self.images, paths, self.workers)

    @property
    def layout(self) -> Layout:
        """The layout of the cache's file of these images."""
        return Layout(self.contents_sha256, len(self.examples), self.pixels)

    def __len__(self) -> int:
        return -(-len(self.examples) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images_BCHW uint8, labels_B int64) on the CPU, in the order of the list.

        Raises:
            InputError: the first image, in order, that cannot be read.
        """
        if self.cache is None or not self.examples:
            yield from self._batches(None)
            return
        with closing(DecodedPass(self.cache, self.layout)) as decoded:
            yield from self._batches(decoded)
            self.from_cache = decoded.from_cache

    def _batches(self, decoded: DecodedPass | None) -> Iterator[tuple[Tensor, Tensor]]:
        size, label_N = self.batch_size, torch.tensor([example.label for example in self.examples])
        labels = (label_N[start : start + size] for start in range(0, len(label_N), size))
        filled = filled_ahead(
            partial(self._fill, decoded),
            len(self.examples),
            self.pixels.image_size,
            size,
            self.workers,
            pin=self.pin,
            prefetch_batches=self.prefetch_batches,
        )
        with closing(filled):
            yield from zip(filled, labels, strict=True)

    def _fill(self, decoded: DecodedPass | None, index: int, out_CHW: Pixels) -> None:
        if decoded is not None and decoded.fill(index, out_CHW):
            return
        put_square(self.images.read(self.examples[index].path), self.pixels, out_CHW)
        if decoded is not None:
            decoded.keep(index, out_CHW)


def filled_ahead(
    fill: Callable[[int, Pixels], None],
    count: int,
    image_size: int,
    batch_size: int,
    workers: int,
    *,
    pin: bool = False,
    prefetch_batches: int = 2,
) -> Generator[Tensor, None, None]:
    """Yield batches images_BCHW uint8 on the CPU, while threads fill the next ones.

    Args:
        fill: writes the image with this index into an array [3, image_size, image_size]. It must
            allow calls from several threads.
        count: the number of images.
        image_size: side of the square images, pixels.
        batch_size: images per batch; the last batch may be smaller.
        workers: threads; 0 fills in the calling thread.
        pin: put batches into page-locked memory.
        prefetch_batches: batches that are prepared while one is in use.
    """
    begun: deque[Tensor] = deque()

    def begin_batches() -> Iterator[Iterator[tuple[int, Tensor]]]:
        for start in range(0, count, batch_size):
            shape = (min(batch_size, count - start), 3, image_size, image_size)
            begun.append(torch.empty(shape, dtype=torch.uint8, pin_memory=pin))
            yield enumerate(begun[-1], start)

    def fill_slot(indexed_slot: tuple[int, Tensor]) -> None:
        index, slot_CHW = indexed_slot
        # NumPy copies: torch would start its own threads in every decoding thread.
        fill(index, slot_CHW.numpy())

    with closing(groups_ahead(fill_slot, begin_batches(), workers, prefetch_batches)) as filled:
        for _ in filled:
            yield begun.popleft()


def put_square(image: Image.Image, pixels: TestPixels, out_CHW: Pixels) -> None:
    """Write the test-time square of an RGB image into an array."""
    out_CHW[...] = np.asarray(pixels.square(image)).transpose(2, 0, 1)
