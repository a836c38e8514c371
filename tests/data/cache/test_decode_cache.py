"""The cache of decoded test images: equal pixels, a bounded size, and no failed runs."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from so_clip.data.batches import TestStream
from so_clip.data.cache.decode_cache import PARTIAL, SUFFIX, DecodeCache, images_sha256
from so_clip.data.cache.decoded_file import Layout
from so_clip.data.examples import Example
from so_clip.data.images import ImageFolder
from so_clip.data.transforms import TestPixels
from so_clip.errors import InputError
from tests.helpers.command import environment

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


@pytest.fixture
def images(tmp_path: Path) -> Watched:
    root = tmp_path / "images"
    root.mkdir()
    for index, name in enumerate(NAMES):
        Image.effect_noise((20 + index, 30), 20 + 9 * index).convert("RGB").save(root / name)
    return Watched(root)


@pytest.fixture
def cache(tmp_path: Path) -> DecodeCache:
    return DecodeCache(tmp_path / "cache" / "decoded", MIB, reserve_bytes=0)


def _stream(images: ImageFolder, cache: DecodeCache | None, names=NAMES, workers=2, side=SIDE):
    examples = [Example(name, place % 3) for place, name in enumerate(names)]
    return TestStream(images, examples, TestPixels(side), 3, workers, cache=cache)


def _pixels(*arguments, **options) -> torch.Tensor:
    return torch.cat([images_BCHW for images_BCHW, _ in _stream(*arguments, **options)])


def _files(cache: DecodeCache, suffix: str = SUFFIX) -> list[Path]:
    return sorted(cache.folder.glob(f"*{suffix}"))


def _decoded_by(images: Watched, *arguments, **options) -> int:
    """Make a pass, check its pixels, and return how many images it decoded."""
    wanted = _pixels(ImageFolder(images.root), None, *arguments[1:], **options)
    before = images.decoded
    assert torch.equal(_pixels(images, *arguments, **options), wanted)
    return images.decoded - before


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_second_pass_decodes_nothing_and_has_the_same_pixels(images, cache, workers, capsys):
    stream = _stream(images, cache, workers=workers)
    passes = [[*stream] for _ in range(2)]
    assert images.decoded == 7
    assert stream.from_cache == 7
    again = _stream(images, cache, workers=workers)
    passes.append([*again])
    assert (images.decoded, again.from_cache) == (7, 7)
    for batches in passes:
        assert [len(labels_B) for _, labels_B in batches] == [3, 3, 1]
        assert torch.cat([labels_B for _, labels_B in batches]).tolist() == [0, 1, 2, 0, 1, 2, 0]
        assert torch.equal(torch.cat([image for image, _ in batches]), _pixels(images, None))
    assert [file.stat().st_size for file in _files(cache)] == [FILE_BYTES]
    assert _files(cache, PARTIAL) == []
    assert capsys.readouterr().err == ""


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=4),
    st.sampled_from([2, 7, 33]),
    st.integers(0, 5),
)
def test_pixels_are_those_of_the_transform_at_any_size(tmp_path_factory, sizes, side, seed):
    root = tmp_path_factory.mktemp("sizes")
    rng = np.random.default_rng(seed)
    names = [f"{place}.png" for place in range(len(sizes))]
    for name, (width, height) in zip(names, sizes, strict=True):
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(root / name, compress_level=1)
    images, cache = Watched(root), DecodeCache(root / "cache", MIB, reserve_bytes=0)
    assert _decoded_by(images, cache, names, side=side) == len(names)
    assert _decoded_by(images, cache, names, side=side) == 0


def test_everything_that_decides_the_pixels_decides_the_name_of_the_file(images, cache):
    assert _decoded_by(images, cache) == 7
    assert _decoded_by(images, cache, side=9) == 7
    assert _decoded_by(images, cache, names=NAMES[::-1]) == 7
    file = images.root / NAMES[0]
    before = file.stat()
    Image.new("RGB", (20, 30), (1, 2, 3)).save(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert _decoded_by(images, cache) == 7
    assert len(_files(cache)) == 4
    squares = TestPixels(8), TestPixels(8, "squash"), TestPixels(8, "shortest", "bilinear")
    layouts = [Layout("a", 7, pixels) for pixels in squares]
    layouts += [Layout("b", 7, squares[0]), Layout("a", 6, squares[0])]
    assert len({layout.key for layout in layouts}) == 5
    assert layouts[0].key == Layout("a", 7, TestPixels(8)).key


def test_the_same_images_in_another_folder_have_the_same_file(images, cache, tmp_path):
    assert _decoded_by(images, cache) == 7
    images.root = images.root.rename(tmp_path / "moved")
    assert _decoded_by(images, cache) == 0


def test_a_pass_that_stops_or_fails_leaves_no_file(images, cache):
    stream = iter(_stream(images, cache, NAMES * 9))
    next(stream)
    assert len(_files(cache, PARTIAL)) == 1
    stream.close()
    assert _files(cache) == _files(cache, PARTIAL) == []
    (images.root / NAMES[4]).write_bytes(b"no image")
    with pytest.raises(InputError, match=NAMES[4]):
        _pixels(images, cache)
    assert _files(cache) == _files(cache, PARTIAL) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_with_a_wrong_checksum_is_decoded_and_the_file_is_written_again(
    images, cache, workers, capsys
):
    assert _decoded_by(images, cache) == 7
    [file] = _files(cache)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    content[-5 * IMAGE_BYTES] ^= 128
    file.write_bytes(content)
    assert _decoded_by(images, cache, workers=workers) == 2
    assert "2 of its images have wrong checksums" in capsys.readouterr().err
    assert _decoded_by(images, cache, workers=workers) == 7
    assert _decoded_by(images, cache, workers=workers) == 0


DAMAGES = {
    "cut": lambda content: content[:-1],
    "cut in its head": lambda content: content[:50],
    "empty": lambda content: b"",
    "longer": lambda content: content + b"\0",
    "other magic": lambda content: b"X" + content[1:],
    "other header": lambda content: content[:30] + b"X" + content[31:],
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_files_are_written_again(images, cache, damage, capsys):
    assert _decoded_by(images, cache) == 7
    [file] = _files(cache)
    file.write_bytes(damage(file.read_bytes()))
    assert _decoded_by(images, cache) == 7
    said = capsys.readouterr().err
    assert said.count("so_clip: ") == 1
    assert str(file) in said
    assert _decoded_by(images, cache) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, FILE_BYTES - 1), st.integers(1, 255))
def test_no_changed_byte_changes_a_pixel(tmp_path_factory, place, change):
    root = tmp_path_factory.getbasetemp() / "flips"
    images, cache = Watched(root), DecodeCache(root / "cache", MIB, reserve_bytes=0)
    if not root.exists():
        root.mkdir()
        for index, name in enumerate(NAMES):
            Image.effect_noise((9, 9), 30 + index).convert("RGB").save(root / name)
    _decoded_by(images, cache)
    [file] = _files(cache)
    with file.open("r+b") as stream:
        stream.seek(place)
        byte = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([byte ^ change]))
    assert _decoded_by(images, cache) > 0, "a change went unnoticed"


# Room.


def test_the_least_recently_read_file_makes_room(images, tmp_path):
    cache = DecodeCache(tmp_path / "cache", 2 * FILE_BYTES + 1000, reserve_bytes=0)
    lists = [NAMES, NAMES[::-1], NAMES[1:] + NAMES[:1]]
    first, second, third = lists
    _decoded_by(images, cache, first)
    _decoded_by(images, cache, second)
    for file, ago in zip(_files(cache), (100, 100), strict=True):
        os.utime(file, (time.time() - ago, time.time() - ago))
    assert _decoded_by(images, cache, first) == 0  # which is a use
    assert _decoded_by(images, cache, third) == 7
    assert len(_files(cache)) == 2
    assert _decoded_by(images, cache, first) == _decoded_by(images, cache, third) == 0
    assert _decoded_by(images, cache, second) == 7


def test_a_file_that_is_being_read_is_not_deleted(images, tmp_path, capsys):
    cache = DecodeCache(tmp_path / "cache", FILE_BYTES + 1000, reserve_bytes=0)
    _decoded_by(images, cache)
    reader = iter(_stream(images, cache))
    next(reader)
    assert _decoded_by(images, cache, NAMES[::-1]) == 7
    assert "GiB that are in use (evaluation.decode_cache_gib=" in capsys.readouterr().err
    assert _decoded_by(images, cache) == 0
    assert len([*reader]) == 2
    assert _decoded_by(images, cache, NAMES[::-1]) == 7
    assert _decoded_by(images, cache, NAMES[::-1]) == 0


def test_images_above_the_budget_are_streamed_with_one_message(images, tmp_path, capsys):
    cache = DecodeCache(tmp_path / "cache", FILE_BYTES - 1, reserve_bytes=0)
    stream = _stream(images, cache)
    for _ in range(3):
        assert len([*stream]) == 3
    said = capsys.readouterr().err
    assert said.count("decoded test images are not kept: they take ") == 1
    assert _files(cache) == _files(cache, PARTIAL) == []


def test_nothing_is_written_to_a_disk_without_free_space(images, tmp_path, capsys):
    cache = DecodeCache(tmp_path / "cache", MIB, reserve_bytes=2**60)
    assert _decoded_by(images, cache) == 7
    assert "GiB stay free" in capsys.readouterr().err
    assert _files(cache) == _files(cache, PARTIAL) == []


def test_nothing_is_written_without_file_locks(images, cache, monkeypatch, capsys):
    monkeypatch.setattr("so_clip.data.cache.decoded_file.fcntl", None)
    assert _decoded_by(images, cache) == 7
    assert "cannot be written: No locks available" in capsys.readouterr().err
    assert _files(cache) == _files(cache, PARTIAL) == []


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_the_disk_cannot_hold_gives_a_message_and_no_error(images, cache, capsys):
    with _largest_file(FILE_BYTES - 1):
        assert _decoded_by(images, cache) == 7
    assert "cannot be written: File too large" in capsys.readouterr().err
    assert _files(cache) == _files(cache, PARTIAL) == []


def test_the_disk_space_of_a_file_is_taken_before_its_first_image(images, cache):
    stream = iter(_stream(images, cache))
    next(stream)
    [partial] = _files(cache, PARTIAL)
    assert partial.stat().st_blocks * 512 >= FILE_BYTES
    stream.close()


def test_links_and_pipes_in_place_of_a_file_are_not_written(images, cache, tmp_path, capsys):
    assert _decoded_by(images, cache) == 7
    [file] = _files(cache)
    file.unlink()
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    file.with_suffix(PARTIAL).symlink_to(outside)
    assert _decoded_by(images, cache) == 7
    assert outside.read_text() == "untouched"
    file.with_suffix(PARTIAL).unlink(missing_ok=True)
    os.mkfifo(file)
    assert _decoded_by(images, cache) == 7
    assert str(file) in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_gives_a_message_and_no_error(images, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        cache = DecodeCache(folder, MIB, reserve_bytes=0)
        assert _decoded_by(images, cache) == 7
        assert capsys.readouterr().err.count("decoded test images are not kept") == 1


# Several processes.

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
    assert len(_files(cache)) == 1
    assert _files(cache, PARTIAL) == []
    assert _decoded_by(images, cache) == 0


@pytest.mark.slow
def test_the_file_of_a_killed_process_is_replaced_and_that_of_a_running_one_is_not(images, cache):
    builder = _builder(images, cache, pause=60)
    assert builder.stdout.readline() == "ready\n"
    builder.stdin.write("go\n")
    builder.stdin.flush()
    assert builder.stdout.readline() == "batch\n"
    [partial] = _files(cache, PARTIAL)
    assert _decoded_by(images, cache) == 7  # while the other has it, nothing waits for it
    assert _decoded_by(images, cache, NAMES[::-1]) == 7
    assert _files(cache, PARTIAL) == [partial]
    builder.kill()
    builder.communicate()
    assert _files(cache, PARTIAL) == [partial]
    _decoded_by(images, cache, NAMES[1:])  # making room tidies up
    assert _files(cache, PARTIAL) == []
    partial.write_bytes(b"of another process, that was killed")
    assert _decoded_by(images, cache) == 7
    assert _decoded_by(images, cache) == 0


def test_reading_keeps_a_process_small(tmp_path, images):
    """A pass over a file of 9 MiB keeps less than 3 MiB of it mapped."""
    status = Path("/proc/self/smaps")
    if not status.exists():
        pytest.skip("needs /proc")
    cache = DecodeCache(tmp_path / "cache", 100 * MIB, reserve_bytes=0)
    names = [NAMES[place % 7] for place in range(60)]
    _pixels(images, cache, names, side=224)
    [file] = _files(cache)
    most = 0
    for _ in _stream(images, cache, names, side=224):
        lines = status.read_text().splitlines()
        places = [at for at, line in enumerate(lines) if line.endswith(file.name)]
        assert places
        mapped = [line.split() for at in places for line in lines[at : at + 8]]
        most = max(most, *(int(words[1]) for words in mapped if words[0] == "Rss:"))
    assert file.stat().st_size > 8 * MIB
    assert most < 3000, f"{most} KiB of the file are mapped"


# The checksum of a list of images.


@pytest.fixture
def folder(tmp_path):
    for index in range(4):
        Image.effect_noise((40, 36), 50 + index).save(tmp_path / f"{index}.png")
    return ImageFolder(tmp_path)


def test_the_checksum_names_images_that_cannot_be_read(folder):
    (folder.root / "1.png").unlink()
    (folder.root / "2.png").write_bytes(b"")
    for workers in (0, 3):
        with pytest.raises(InputError, match=r"1\.png: the image is missing"):
            images_sha256(folder, ["0.png", "1.png", "2.png"], workers)
        with pytest.raises(InputError, match=r"2\.png: the image is empty"):
            images_sha256(folder, ["0.png", "2.png"], workers)


def test_the_checksum_depends_on_the_order_of_the_images(tmp_path):
    for index in range(200):
        (tmp_path / str(index)).write_text(str(index))
    names, images = [str(index) for index in range(200)], ImageFolder(tmp_path)
    assert images_sha256(images, names, 0) == images_sha256(images, names, 7)
    for other in (names[::-1], names[:-1], [*names[:100], "101", "100", *names[102:]]):
        assert images_sha256(images, other, 2) != images_sha256(images, names, 2)


def test_no_bar_is_shown_in_a_log(folder, monkeypatch, capsys):
    monkeypatch.setattr("so_clip.data.cache.decode_cache._PATIENCE_SECONDS", 0)
    images_sha256(folder, ["0.png", "1.png"], 1)
    assert capsys.readouterr().err == ""
