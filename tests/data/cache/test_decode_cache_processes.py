"""Several processes share a cache of decoded test images, and one of them is killed."""

import subprocess
import sys

import pytest

from so_clip.data.cache.decode_cache import PARTIAL, DecodeCache
from so_clip.data.images import ImageFolder
from tests.helpers.command import environment
from tests.helpers.decode_caches import NAMES, decoded_by, files_of

BUILDER = """
import sys, time, zlib
from pathlib import Path
import torch
from so_clip.data.batches import TestStream
from so_clip.data.cache.decode_cache import DecodeCache
from so_clip.data.examples import Example
from so_clip.data.images import ImageFolder
from so_clip.data.transforms import TestPixels

root, folder, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
examples = [Example(path.name, 0) for path in sorted(root.iterdir())]
cache = DecodeCache(folder, 2**20, reserve_bytes=0)
print("ready", flush=True)
sys.stdin.readline()
stream = TestStream(ImageFolder(root), examples, TestPixels(8), 3, 2, cache=cache)
total = 0
for turn in range(int(sys.argv[4])):
    if turn:
        [path.unlink(missing_ok=True) for path in folder.glob("*.npy") if turn % 4 == 0]
    for images_BCHW, _ in stream:
        total = zlib.crc32(images_BCHW.numpy().tobytes(), total)
        print("batch", flush=True)
        time.sleep(pause)
    print(total, stream.from_cache, flush=True)
    total = 0
"""


def _builder(images: ImageFolder, cache: DecodeCache, pause: float = 0, turns: int = 1):
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, images.root, cache.folder, str(pause), str(turns)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


@pytest.mark.slow
def test_parallel_processes_read_equal_pixels_and_write_one_file(images, cache):
    builders = [_builder(images, cache, turns=12) for _ in range(2)]
    for builder in builders:
        assert builder.stdout.readline() == "ready\n"
    for builder in builders:
        builder.stdin.write("go\n")
        builder.stdin.flush()
    outputs = [builder.communicate(timeout=120) for builder in builders]
    assert [said for _, said in outputs] == ["", ""]
    lines = [line.split() for out, _ in outputs for line in out.splitlines() if line != "batch"]
    assert len({total for total, _ in lines}) == 1
    assert {from_cache for _, from_cache in lines} == {"0", "7"}
    assert len(files_of(cache)) == 1
    assert files_of(cache, PARTIAL) == []
    assert decoded_by(images, cache) == 0


@pytest.mark.slow
def test_the_file_of_a_killed_process_is_replaced_and_that_of_a_running_one_is_not(images, cache):
    builder = _builder(images, cache, pause=60)
    assert builder.stdout.readline() == "ready\n"
    builder.stdin.write("go\n")
    builder.stdin.flush()
    assert builder.stdout.readline() == "batch\n"
    [partial] = files_of(cache, PARTIAL)
    assert decoded_by(images, cache) == 7  # while the other has it, nothing waits for it
    assert decoded_by(images, cache, NAMES[::-1]) == 7
    assert files_of(cache, PARTIAL) == [partial]
    builder.kill()
    builder.communicate()
    assert files_of(cache, PARTIAL) == [partial]
    decoded_by(images, cache, NAMES[1:])  # making room removes it
    assert files_of(cache, PARTIAL) == []
    partial.write_bytes(b"of another process, that was killed")
    assert decoded_by(images, cache) == 7
    assert decoded_by(images, cache) == 0
