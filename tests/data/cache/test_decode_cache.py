"""The cache of decoded test images: equal pixels, and damaged files are written again."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from so_clip.data.cache.decode_cache import PARTIAL, DecodeCache, images_sha256
from so_clip.data.cache.decoded_file import Layout
from so_clip.data.images import ImageFolder
from so_clip.data.transforms import TestPixels
from so_clip.errors import InputError
from tests.helpers.decode_caches import (
    FILE_BYTES,
    IMAGE_BYTES,
    MIB,
    NAMES,
    Watched,
    decoded_by,
    files_of,
    pixels_of,
    stream_of,
)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_second_pass_decodes_nothing_and_has_the_same_pixels(images, cache, workers, capsys):
    stream = stream_of(images, cache, workers=workers)
    passes = [[*stream] for _ in range(2)]
    assert images.decoded == 7
    assert stream.from_cache == 7
    again = stream_of(images, cache, workers=workers)
    passes.append([*again])
    assert (images.decoded, again.from_cache) == (7, 7)
    for batches in passes:
        assert [len(labels_B) for _, labels_B in batches] == [3, 3, 1]
        assert torch.cat([labels_B for _, labels_B in batches]).tolist() == [0, 1, 2, 0, 1, 2, 0]
        assert torch.equal(torch.cat([image for image, _ in batches]), pixels_of(images, None))
    assert [file.stat().st_size for file in files_of(cache)] == [FILE_BYTES]
    assert files_of(cache, PARTIAL) == []
    assert capsys.readouterr().err == ""


@settings(max_examples=25)
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
    assert decoded_by(images, cache, names, side=side) == len(names)
    assert decoded_by(images, cache, names, side=side) == 0


def test_everything_that_decides_the_pixels_decides_the_name_of_the_file(images, cache):
    assert decoded_by(images, cache) == 7
    assert decoded_by(images, cache, side=9) == 7
    assert decoded_by(images, cache, names=NAMES[::-1]) == 7
    file = images.root / NAMES[0]
    before = file.stat()
    Image.new("RGB", (20, 30), (1, 2, 3)).save(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert decoded_by(images, cache) == 7
    assert len(files_of(cache)) == 4
    squares = TestPixels(8), TestPixels(8, "squash"), TestPixels(8, "shortest", "bilinear")
    layouts = [Layout("a", 7, pixels) for pixels in squares]
    layouts += [Layout("b", 7, squares[0]), Layout("a", 6, squares[0])]
    assert len({layout.key for layout in layouts}) == 5
    assert layouts[0].key == Layout("a", 7, TestPixels(8)).key


def test_the_same_images_in_another_folder_have_the_same_file(images, cache, tmp_path):
    assert decoded_by(images, cache) == 7
    images.root = images.root.rename(tmp_path / "moved")
    assert decoded_by(images, cache) == 0


def test_a_pass_that_stops_or_fails_leaves_no_file(images, cache):
    stream = iter(stream_of(images, cache, NAMES * 9))
    next(stream)
    assert len(files_of(cache, PARTIAL)) == 1
    stream.close()
    assert files_of(cache) == files_of(cache, PARTIAL) == []
    (images.root / NAMES[4]).write_bytes(b"no image")
    with pytest.raises(InputError, match=NAMES[4]):
        pixels_of(images, cache)
    assert files_of(cache) == files_of(cache, PARTIAL) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_with_a_wrong_checksum_is_decoded_and_the_file_is_written_again(
    images, cache, workers, capsys
):
    assert decoded_by(images, cache) == 7
    [file] = files_of(cache)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    content[-5 * IMAGE_BYTES] ^= 128
    file.write_bytes(content)
    assert decoded_by(images, cache, workers=workers) == 2
    assert "2 of its images have wrong checksums" in capsys.readouterr().err
    assert decoded_by(images, cache, workers=workers) == 7
    assert decoded_by(images, cache, workers=workers) == 0


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
    assert decoded_by(images, cache) == 7
    [file] = files_of(cache)
    file.write_bytes(damage(file.read_bytes()))
    assert decoded_by(images, cache) == 7
    said = capsys.readouterr().err
    assert said.count("so_clip: ") == 1
    assert str(file) in said
    assert decoded_by(images, cache) == 0


@pytest.mark.slow
@settings(max_examples=60)
@given(st.integers(0, FILE_BYTES - 1), st.integers(1, 255))
def test_no_changed_byte_changes_a_pixel(tmp_path_factory, place, change):
    root = tmp_path_factory.getbasetemp() / "flips"
    images, cache = Watched(root), DecodeCache(root / "cache", MIB, reserve_bytes=0)
    if not root.exists():
        root.mkdir()
        for index, name in enumerate(NAMES):
            Image.effect_noise((9, 9), 30 + index).convert("RGB").save(root / name)
    decoded_by(images, cache)
    [file] = files_of(cache)
    with file.open("r+b") as stream:
        stream.seek(place)
        byte = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([byte ^ change]))
    assert decoded_by(images, cache) > 0, "a change went unnoticed"


@pytest.mark.slow
def test_reading_keeps_a_process_small(tmp_path, images):
    """A pass over a file of 9 MiB keeps less than 3 MiB of it mapped."""
    status = Path("/proc/self/smaps")
    if not status.exists():
        pytest.skip("needs /proc")
    cache = DecodeCache(tmp_path / "cache", 100 * MIB, reserve_bytes=0)
    names = [NAMES[place % 7] for place in range(60)]
    pixels_of(images, cache, names, side=224)
    [file] = files_of(cache)
    most = 0
    for _ in stream_of(images, cache, names, side=224):
        lines = status.read_text().splitlines()
        places = [at for at, line in enumerate(lines) if line.endswith(file.name)]
        assert places
        mapped = [line.split() for at in places for line in lines[at : at + 8]]
        most = max(most, *(int(words[1]) for words in mapped if words[0] == "Rss:"))
    assert file.stat().st_size > 8 * MIB
    assert most < 3000, f"{most} KiB of the file are mapped"


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
