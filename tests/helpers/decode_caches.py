"""A folder of small images, and passes over it through a cache of decoded images."""

from pathlib import Path

import torch
from PIL import Image

from so_clip.data.batches import TestStream
from so_clip.data.cache.decode_cache import SUFFIX, DecodeCache
from so_clip.data.cache.decoded_file import Layout
from so_clip.data.examples import Example
from so_clip.data.images import ImageFolder
from so_clip.data.transforms import TestPixels

SIDE = 8
MIB = 2**20
NAMES = [f"{index}.png" for index in range(7)]
IMAGE_BYTES = 3 * SIDE * SIDE
FILE_BYTES = Layout("", 7, TestPixels(SIDE)).file_bytes


class Watched(ImageFolder):
    """A folder that counts how many images are decoded."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.decoded = 0

    def read(self, path: str) -> Image.Image:
        self.decoded += 1
        return super().read(path)


def stream_of(images: ImageFolder, cache: DecodeCache | None, names=NAMES, workers=2, side=SIDE):
    examples = [Example(name, place % 3) for place, name in enumerate(names)]
    return TestStream(images, examples, TestPixels(side), 3, workers, cache=cache)


def pixels_of(*arguments, **options) -> torch.Tensor:
    return torch.cat([images_BCHW for images_BCHW, _ in stream_of(*arguments, **options)])


def files_of(cache: DecodeCache, suffix: str = SUFFIX) -> list[Path]:
    return sorted(cache.folder.glob(f"*{suffix}"))


def decoded_by(images: Watched, *arguments, **options) -> int:
    """Make a pass, check its pixels, and return how many images it decoded."""
    wanted = pixels_of(ImageFolder(images.root), None, *arguments[1:], **options)
    before = images.decoded
    assert torch.equal(pixels_of(images, *arguments, **options), wanted)
    return images.decoded - before
