"""Time test images: decoded, read from the decode cache, and encoded in both cases.

python scripts/bench_decode.py           # a part of `make bench`: two minutes
python scripts/bench_decode.py --quick   # a few small images, to check that it runs

Writes results/tables/decode_cache_DEVICE.csv. The script draws the images itself: JPEGs of
smooth shapes under grain, as large and nearly as hard to decode as ImageNet's. The ways take turns,
and the best time of each counts. Rates and ratios use the processor seconds of all threads, which
are also valid on a shared machine. Files stay in the system's page cache, as in a second run.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.bench.tables import write_table
from so_clip.clip.load import load_backbone
from so_clip.data.batches import TestStream
from so_clip.data.cache.decode_cache import GIB, DecodeCache, images_sha256
from so_clip.data.examples import Example
from so_clip.data.images import ImageFolder
from so_clip.evaluate.evaluator import encode
from so_clip.runtime.device import cpu_threads, pick_device
from so_clip.runtime.precision import Precision, pick_precision

TABLES = Path(__file__).resolve().parent.parent / "results" / "tables"
WIDTH, HEIGHT, QUALITY = 500, 375, 90
# Weights do not affect the time, and random ones need no download.
TINY, BASE = ("tiny", "embedded"), ("ViT-B-32-quickgelu", None)
DECODED, KEPT, FETCHED = "decoded", "decoded and kept", "from the cache"
LOOKED_UP, ENCODED, FETCHED_ENCODED = "looked up", "decoded, encoded", "from the cache, encoded"


@dataclass(frozen=True)
class Plan:
    """The number and size of the images, the rounds, and the images that each tower encodes."""

    images: int
    width: int
    height: int
    rounds: int
    towers: tuple[tuple[str, str | None, int], ...]
    batch_size: int = 32


FULL = Plan(256, WIDTH, HEIGHT, rounds=4, towers=((*TINY, 256), (*BASE, 16)), batch_size=16)
QUICK = Plan(8, 60, 45, rounds=2, towers=((*TINY, 8),))


def main(argv: Sequence[str] | None = None) -> None:
    """Read the arguments, measure, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few small images")
    parser.add_argument("--device", default="cpu", help="for encoding: cpu | cuda | cuda:N")
    parser.add_argument("--workers", type=int, default=2, help="threads for decoding")
    parser.add_argument("--threads", type=int, default=1, help="threads for encoding")
    parser.add_argument("--out", type=Path, default=TABLES)
    options = parser.parse_args(argv)
    with cpu_threads(options.threads):
        _bench(options)


def _bench(options: argparse.Namespace) -> None:
    plan, device = QUICK if options.quick else FULL, pick_device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(plan, Path(folder), device, options.workers)
    file = options.out / f"decode_cache_{device.type}.csv"
    command = f"python scripts/bench_decode.py{' --quick' if options.quick else ''}"
    table = write_table(rows, file, device, command)
    print(table.iloc[:, :-4].to_string(index=False))


def measure(plan: Plan, folder: Path, device: torch.device, workers: int) -> list[dict[str, Any]]:
    """Return one row for each way and tower, at the tower's image size."""
    examples = write_images(folder / "images", plan)
    kilobytes = sum(file.stat().st_size for file in (folder / "images").iterdir()) / 1000
    same = {
        "jpeg_kilobytes": kilobytes / plan.images,
        "jpeg_size": f"{plan.width} x {plan.height}",
        "workers": workers,
        "rounds": plan.rounds,
    }
    rows = []
    for architecture, pretrained, encoded in plan.towers:
        ways = Ways(plan, folder, examples, architecture, pretrained, encoded, device, workers)
        seconds = ways.timed(plan.rounds)
        best = {way: min(turn.processor for turn in turns) for way, turns in seconds.items()}
        for way, turns in seconds.items():
            encodes = way in (ENCODED, FETCHED_ENCODED)
            images = encoded if encodes else plan.images
            rows.append(
                {
                    "backbone": architecture,
                    "image_size": ways.pixels.image_size,
                    "way": way,
                    "images": images,
                    **same,
                    "seconds": min(turn.wall for turn in turns),
                    "processor_seconds": best[way],
                    "images_per_processor_second": images / best[way],
                    "times_less_than_decoding": best[ENCODED if encodes else DECODED] / best[way],
                }
            )
    return rows


class Seconds(NamedTuple):
    """Seconds of one pass: on the clock, and of the processor in all threads."""

    wall: float
    processor: float


class Ways:
    """The ways from files to pixels and to features, at one backbone's image size."""

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        examples: list[Example],
        architecture: str,
        pretrained: str | None,
        encoded: int,
        device: torch.device,
        workers: int,
    ) -> None:
        self.plan, self.examples, self.device, self.workers = plan, examples, device, workers
        self.images = ImageFolder(folder / "images")
        self.cache = DecodeCache(folder / "cache", 4 * GIB, reserve_bytes=0)
        backbone = load_backbone(architecture, pretrained)
        self.pixels = backbone.pixels
        self.encode_image = backbone.to(device).encode_image
        self.precision = Precision(pick_precision("auto", device), device)
        self.decoding, self.fetching = self._stream(None), self._stream(self.cache)
        encoded_examples = examples[:encoded]
        self.encoding = (
            self._stream(None, encoded_examples),
            self._stream(self.cache, encoded_examples),
        )

    def timed(self, rounds: int) -> dict[str, list[Seconds]]:
        """Run all ways in turn, after an untimed round, and return their seconds.

        LOOKED_UP is a separate way, because a run looks its images up once for all passes.
        """
        decoding, fetching = self.encoding
        wanted = self._features(decoding)
        for _ in range(2):
            assert torch.equal(self._features(fetching), wanted)
            self._pixels(self.fetching)
        taken: dict[str, list[Seconds]] = {way: [] for way in self._ways()}
        turns = [turn for _ in range(rounds) for turn in self._ways().items()]
        for way, pass_ in tqdm(turns, f"{self.pixels.image_size} pixels", dynamic_ncols=True):
            if way == KEPT:
                self.cache.path(self.fetching.layout).unlink()
            wall, processor = time.perf_counter(), time.process_time()
            pass_()
            spent = Seconds(time.perf_counter() - wall, time.process_time() - processor)
            taken[way].append(spent)
        return taken

    def _ways(self) -> dict[str, Callable[[], object]]:
        paths = [example.path for example in self.examples]
        return {
            LOOKED_UP: lambda: images_sha256(self.images, paths, self.workers),
            DECODED: lambda: self._pixels(self.decoding),
            KEPT: lambda: self._pixels(self.fetching),
            FETCHED: lambda: self._pixels(self.fetching),
            ENCODED: lambda: self._features(self.encoding[0]),
            FETCHED_ENCODED: lambda: self._features(self.encoding[1]),
        }

    def _stream(
        self, cache: DecodeCache | None, examples: Sequence[Example] | None = None
    ) -> TestStream:
        return TestStream(
            self.images,
            examples or self.examples,
            self.pixels,
            self.plan.batch_size,
            self.workers,
            pin=self.device.type == "cuda",
            cache=cache,
        )

    def _pixels(self, stream: TestStream) -> None:
        for _ in stream:
            pass

    def _features(self, stream: TestStream) -> Tensor:
        return encode(self.encode_image, stream, self.device, self.precision)


def write_images(folder: Path, plan: Plan) -> list[Example]:
    """Write JPEGs of smooth shapes at three scales under grain, one seed per image."""
    folder.mkdir()
    shape = plan.height, plan.width
    for index in tqdm(range(plan.images), "images", dynamic_ncols=True):
        rng = np.random.default_rng(index)
        pixels_HWC = rng.normal(128, 14, (*shape, 3))
        for cells, contrast in ((4, 60), (16, 30), (64, 15)):
            coarse = rng.integers(0, 256, (cells, cells, 3), np.uint8)
            smooth = Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC)
            pixels_HWC += contrast * (np.asarray(smooth) / 127.5 - 1)
        image = Image.fromarray(pixels_HWC.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{index:05d}.jpg", quality=QUALITY)
    return [Example(f"{index:05d}.jpg", 0) for index in range(plan.images)]


if __name__ == "__main__":
    main()
