"""Time test images: decoded, out of the decode cache, and on to their features either way.

python scripts/bench_decode.py           # a part of `make bench`: two minutes
python scripts/bench_decode.py --quick   # a few small images, to see that it runs

Writes results/tables/decode_cache_DEVICE.csv. The images are JPEGs that it draws itself: smooth
shapes under grain, as large and nearly as hard to decode as ImageNet's. The ways take turns, and
the best of each counts. Processor seconds are those of all threads, which a machine that is shared
with others can tell, too; rates and ratios are of them. Files stay in the system's memory, as those
of a second run do.
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
from so_clip.clip.backbone import load_backbone
from so_clip.data.batches import TestStream
from so_clip.data.cache.decode_cache import GIB, DecodeCache, images_sha256
from so_clip.data.examples import Example
from so_clip.data.images import ImageFolder
from so_clip.evaluate.evaluator import encode
from so_clip.runtime.device import cpu_threads, pick_device
from so_clip.runtime.precision import Precision, pick_precision

TABLES = Path(__file__).resolve().parent.parent / "results" / "tables"
WIDTH, HEIGHT, QUALITY = 500, 375, 90
# Weights do not matter to the time, and random ones need no download.
TINY, BASE = ("tiny", "embedded"), ("ViT-B-32-quickgelu", None)
DECODED, KEPT, FETCHED = "decoded", "decoded and kept", "from the cache"
LOOKED_UP, ENCODED, FETCHED_ENCODED = "looked up", "decoded, encoded", "from the cache, encoded"


@dataclass(frozen=True)
class Plan:
    """How many images of which size, how many turns, and how many images through which towers."""

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
    parser.add_argument("--device", default="cpu", help="that encodes: cpu | cuda | cuda:N")
    parser.add_argument("--workers", type=int, default=2, help="threads that decode")
    parser.add_argument("--threads", type=int, default=1, help="threads that encode")
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
    """Return a row for each way and image size: at the towers' sizes, and with each tower."""
    examples = write_images(folder / "images", plan)
    kilobytes = sum(each.stat().st_size for each in (folder / "images").iterdir()) / 1000
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
        best = {way: min(taken.processor for taken in each) for way, each in seconds.items()}
        for way, each in seconds.items():
            encodes = way in (ENCODED, FETCHED_ENCODED)
            images = encoded if encodes else plan.images
            rows.append(
                {
                    "backbone": architecture,
                    "image_size": ways.image_size,
                    "way": way,
                    "images": images,
                    **same,
                    "seconds": min(taken.wall for taken in each),
                    "processor_seconds": best[way],
                    "images_per_processor_second": images / best[way],
                    "times_less_than_decoding": best[ENCODED if encodes else DECODED] / best[way],
                }
            )
    return rows


class Seconds(NamedTuple):
    """Of one pass: by the clock, and of the processor in all threads."""

    wall: float
    processor: float


class Ways:
    """The ways from files to pixels, and on to features, at one backbone's image size."""

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
        self.image_size = backbone.image_size
        self.encode_image = backbone.to(device).encode_image
        self.precision = Precision(pick_precision("auto", device), device)
        self.decoding, self.fetching = self._stream(None), self._stream(self.cache)
        some = examples[:encoded]
        self.encoding = self._stream(None, some), self._stream(self.cache, some)

    def timed(self, rounds: int) -> dict[str, list[Seconds]]:
        """Let all ways take turns, after one untimed, and return their seconds.

        A run looks its images up once, for all its passes, and so it is a way of its own here.
        """
        decoding, fetching = self.encoding
        wanted = self._features(decoding)
        for _ in range(2):
            assert torch.equal(self._features(fetching), wanted)
            self._pixels(self.fetching)
        taken: dict[str, list[Seconds]] = {way: [] for way in self._ways()}
        turns = [turn for _ in range(rounds) for turn in self._ways().items()]
        for way, pass_ in tqdm(turns, f"{self.image_size} pixels", dynamic_ncols=True):
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
            self.image_size,
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
    """Write JPEGs of smooth shapes at three scales under grain, each of its own seed."""
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
