"""The benchmark's tables of pixels: test images through a tower, and training crops."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor

from scripts.bench_decode import Plan, Seconds, write_images
from so_clip.clip.load import load_backbone
from so_clip.data.batches import TestStream
from so_clip.data.crop_products import ImageBlocks, uses_products
from so_clip.data.examples import Example
from so_clip.data.images import ImageFolder, load_uint8
from so_clip.data.transforms import RandomResizedCrop
from so_clip.evaluate.evaluator import encode
from so_clip.runtime.precision import Precision, pick_precision
from so_clip.system.machine import usable_cores

Row = dict[str, Any]
WIDTH, HEIGHT = 500, 375  # pixels; the usual size of a photograph in these datasets
CROP_BATCH, CROP_SIDE = 32, 224
RESAMPLED, PRODUCTS = "torchvision, image by image", "two batched products"


@dataclass(frozen=True)
class Tower:
    """A backbone with random weights, the images that it encodes, and its batches."""

    architecture: str
    pretrained: str | None
    images: int
    batch_sizes: tuple[int, ...]


TINY = Tower("tiny", "embedded", 256, (32, 256))
ON_CPU = (TINY, Tower("ViT-B-16-quickgelu", None, 8, (8,)))
ON_CUDA = (TINY, Tower("ViT-B-16-quickgelu", None, 4096, (64, 256, 1024)))
QUICK = (Tower("tiny", "embedded", 8, (4,)),)


def evaluation_rows(device: torch.device, quick: bool) -> list[Row]:
    """Time test images from JPEG files to embeddings: decoded only, encoded only, and both.

    The files are in the system's page cache. Encoding alone starts from decoded batches in
    (page-locked) memory. Processor seconds are those of all threads of the host: on a CPU they are
    also valid on a shared machine.
    """
    towers = QUICK if quick else ON_CUDA if device.type == "cuda" else ON_CPU
    width, height = (60, 45) if quick else (WIDTH, HEIGHT)
    most = max(tower.images for tower in towers)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(min(most, 512), width, height, rounds=0, towers=())
        files = write_images(Path(folder) / "images", plan)
        for tower in towers:
            # A large test set reads the files several times.
            examples = [files[number % len(files)] for number in range(tower.images)]
            rows += _tower_rows(tower, Path(folder), examples, device, rounds=1 if quick else 3)
    return rows


class _Decoded:
    """Stands in for a TestStream: one decoded batch, as often as a test set needs it."""

    def __init__(self, stream: TestStream) -> None:
        self.examples, self._count = stream.examples, len(stream)
        self._batch = next(iter(stream))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return repeat(self._batch, self._count)


def _tower_rows(
    tower: Tower, folder: Path, examples: Sequence[Example], device: torch.device, rounds: int
) -> Iterator[Row]:
    backbone = load_backbone(tower.architecture, tower.pretrained).to(device)
    precision = Precision(pick_precision("auto", device), device)
    workers = usable_cores()
    for size in tower.batch_sizes:
        images = ImageFolder(folder / "images")
        pin = device.type == "cuda"
        stream = TestStream(images, examples, backbone.pixels, size, workers, pin=pin)
        encoded = partial(encode, backbone.encode_image, device=device, precision=precision)
        ways: dict[str, Callable[[], object]] = {
            "decode": partial(_decode, stream),
            "encode": partial(encoded, stream=cast(TestStream, _Decoded(stream))),
            "whole": partial(encoded, stream=stream),
        }
        for way, seconds in _medians(ways, rounds, device).items():
            yield {
                "backbone": tower.architecture,
                "image_size": backbone.image_size,
                "precision": precision.name,
                "batch_size": size,
                "workers": workers,
                "images": len(examples),
                "way": way,
                "rounds": rounds,
                "seconds": seconds.wall,
                "images_per_second": len(examples) / seconds.wall,
                "processor_seconds": seconds.processor,
                "images_per_processor_second": len(examples) / seconds.processor,
            }


def _decode(stream: TestStream) -> int:
    return sum(len(labels_B) for _, labels_B in stream)


def crop_rows(device: torch.device, quick: bool) -> list[Row]:
    """Time the crops of a batch in both ways, and compare their pixels with those of the CPU."""
    shapes = {"noise": (64, 64)} if quick else {"noise": (64, 64), "photographs": (HEIGHT, WIDTH)}
    batch, side = (4, 32) if quick else (CROP_BATCH, CROP_SIDE)
    crop, rows = RandomResizedCrop(side), []
    for name, (height, width) in shapes.items():
        images = _originals(name, height, width, batch)
        ways: dict[str, Callable[[], Tensor]] = {
            RESAMPLED: partial(_resampled, crop, [image.to(device) for image in images]),
            PRODUCTS: partial(_products, crop, ImageBlocks(images, device)),
        }
        expected_BCHW = crop(images, torch.Generator().manual_seed(0)).int()
        for way, seconds in _medians(ways, 1 if quick else 9, device).items():
            difference_BCHW = (ways[way]().cpu().int() - expected_BCHW).abs()
            rows.append(
                {
                    "images": name,
                    "image_pixels": f"{width} x {height}",
                    "batch": batch,
                    "image_size": side,
                    "way": way,
                    "used": uses_products(device) == (way == PRODUCTS),
                    "milliseconds": 1000 * seconds.wall,
                    "processor_milliseconds": 1000 * seconds.processor,
                    "largest_difference_from_cpu": int(difference_BCHW.max()),
                    "share_that_differs": float((difference_BCHW > 0).double().mean()),
                }
            )
    return rows


def _resampled(crop: RandomResizedCrop, images: Sequence[Tensor]) -> Tensor:
    return crop(images, torch.Generator().manual_seed(0))


def _products(crop: RandomResizedCrop, blocks: ImageBlocks) -> Tensor:
    return blocks.crop(range(len(blocks)), crop, torch.Generator().manual_seed(0))[0]


def _originals(name: str, height: int, width: int, count: int) -> list[Tensor]:
    """Return noise, the hardest pixels for a resampler, or drawn photographs."""
    if name == "noise":
        generator = torch.Generator().manual_seed(0)
        noise_BCHW = torch.randint(256, (count, 3, height, width), generator=generator)
        return [*noise_BCHW.byte()]
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(count, width, height, rounds=0, towers=())
        files = write_images(Path(folder) / "images", plan)
        images = load_uint8(ImageFolder(Path(folder) / "images"), files, progress=False)
        assert images is not None
        return images


def _medians(
    ways: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, Seconds]:
    """Return median seconds of each way. The ways take turns, after an untimed one of each."""
    taken: dict[str, list[Seconds]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, run in ways.items():
            _wait(device)
            wall, processor = time.perf_counter(), time.process_time()
            run()
            _wait(device)
            spent = Seconds(time.perf_counter() - wall, time.process_time() - processor)
            if number:
                taken[way].append(spent)
    return {way: Seconds(*map(median, zip(*spent, strict=True))) for way, spent in taken.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
