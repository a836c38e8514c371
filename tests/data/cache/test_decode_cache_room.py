"""The cache of decoded test images keeps its budget, and no full or unusual disk fails a run."""

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from so_clip.data.cache.decode_cache import PARTIAL, DecodeCache
from tests.helpers.decode_caches import FILE_BYTES, MIB, NAMES, decoded_by, files_of, stream_of


def test_the_least_recently_read_file_makes_room(images, tmp_path):
    cache = DecodeCache(tmp_path / "cache", 2 * FILE_BYTES + 1000, reserve_bytes=0)
    lists = [NAMES, NAMES[::-1], NAMES[1:] + NAMES[:1]]
    first, second, third = lists
    decoded_by(images, cache, first)
    decoded_by(images, cache, second)
    for file, ago in zip(files_of(cache), (100, 100), strict=True):
        os.utime(file, (time.time() - ago, time.time() - ago))
    assert decoded_by(images, cache, first) == 0  # which is a use
    assert decoded_by(images, cache, third) == 7
    assert len(files_of(cache)) == 2
    assert decoded_by(images, cache, first) == decoded_by(images, cache, third) == 0
    assert decoded_by(images, cache, second) == 7


def test_a_file_that_is_being_read_is_not_deleted(images, tmp_path, capsys):
    cache = DecodeCache(tmp_path / "cache", FILE_BYTES + 1000, reserve_bytes=0)
    decoded_by(images, cache)
    reader = iter(stream_of(images, cache))
    next(reader)
    assert decoded_by(images, cache, NAMES[::-1]) == 7
    assert "GiB that are in use (evaluation.decode_cache_gib=" in capsys.readouterr().err
    assert decoded_by(images, cache) == 0
    assert len([*reader]) == 2
    assert decoded_by(images, cache, NAMES[::-1]) == 7
    assert decoded_by(images, cache, NAMES[::-1]) == 0


def test_images_above_the_budget_are_streamed_with_one_message(images, tmp_path, capsys):
    cache = DecodeCache(tmp_path / "cache", FILE_BYTES - 1, reserve_bytes=0)
    stream = stream_of(images, cache)
    for _ in range(3):
        assert len([*stream]) == 3
    said = capsys.readouterr().err
    assert said.count("decoded test images are not kept: they take ") == 1
    assert files_of(cache) == files_of(cache, PARTIAL) == []


def test_nothing_is_written_to_a_disk_without_free_space(images, tmp_path, capsys):
    cache = DecodeCache(tmp_path / "cache", MIB, reserve_bytes=2**60)
    assert decoded_by(images, cache) == 7
    assert "GiB stay free" in capsys.readouterr().err
    assert files_of(cache) == files_of(cache, PARTIAL) == []


def test_nothing_is_written_without_file_locks(images, cache, monkeypatch, capsys):
    monkeypatch.setattr("so_clip.data.cache.decoded_file.fcntl", None)
    assert decoded_by(images, cache) == 7
    assert "cannot be written: No locks available" in capsys.readouterr().err
    assert files_of(cache) == files_of(cache, PARTIAL) == []


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
        assert decoded_by(images, cache) == 7
    assert "cannot be written: File too large" in capsys.readouterr().err
    assert files_of(cache) == files_of(cache, PARTIAL) == []


def test_the_disk_space_of_a_file_is_taken_before_its_first_image(images, cache):
    stream = iter(stream_of(images, cache))
    next(stream)
    [partial] = files_of(cache, PARTIAL)
    assert partial.stat().st_blocks * 512 >= FILE_BYTES
    stream.close()


def test_links_and_pipes_in_place_of_a_file_are_not_written(images, cache, tmp_path, capsys):
    assert decoded_by(images, cache) == 7
    [file] = files_of(cache)
    file.unlink()
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    file.with_suffix(PARTIAL).symlink_to(outside)
    assert decoded_by(images, cache) == 7
    assert outside.read_text() == "untouched"
    file.with_suffix(PARTIAL).unlink(missing_ok=True)
    os.mkfifo(file)
    assert decoded_by(images, cache) == 7
    assert str(file) in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_gives_a_message_and_no_error(images, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        cache = DecodeCache(folder, MIB, reserve_bytes=0)
        assert decoded_by(images, cache) == 7
        assert capsys.readouterr().err.count("decoded test images are not kept") == 1
