"""Safe opening of files in folders that others can write to."""

import os
from pathlib import Path

import pytest

from so_clip.system.safe_open import open_plain, read_plain


def test_a_plain_file_is_read_through_a_link_too(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("a")
    assert read_plain(tmp_path / "a") == read_plain(tmp_path / "link") == b"abc"


def test_a_file_above_the_limit_is_not_read(tmp_path: Path):
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**40)  # a sparse file: reading a part of it would fill the memory
    with pytest.raises(OSError, match="larger than 64 MiB, the most that is read"):
        read_plain(tmp_path / "huge")
    (tmp_path / "small").write_bytes(b"abcd")
    assert read_plain(tmp_path / "small", 4) == b"abcd"
    with pytest.raises(OSError, match="larger than"):
        read_plain(tmp_path / "small", 3)


def test_a_pipe_is_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a plain file"):
        read_plain(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a plain file"):
        open_plain(tmp_path / "pipe", os.O_RDWR | os.O_CREAT)


def test_nothing_is_written_through_a_link(tmp_path: Path):
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "link").symlink_to("precious")
    with pytest.raises(OSError, match="symbolic links"):
        open_plain(tmp_path / "link", os.O_RDWR | os.O_CREAT)
    os.close(open_plain(tmp_path / "new", os.O_RDWR | os.O_CREAT))
    assert (tmp_path / "new").exists()
