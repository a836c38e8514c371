"""A results folder that cannot be written is refused by name, and nothing is left behind."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from so_clip.errors import InputError
from so_clip.results.writable import check_writable


def _names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_check_leaves_nothing(tmp_path):
    check_writable(tmp_path / "new" / "deep")
    assert _names(tmp_path) == []
    (tmp_path / "there").mkdir()
    check_writable(tmp_path / "there")
    assert _names(tmp_path) == ["there"]


@pytest.mark.parametrize(
    "place", ["file", "file/runs", "file/deep/runs", "/proc/runs", "/dev/null/x", "n" * 300]
)
def test_a_folder_that_cannot_be_written_is_named_with_a_way_out(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    folder = tmp_path / place
    with pytest.raises(InputError) as caught:
        check_writable(folder)
    assert f"results_dir={folder} cannot be written" in str(caught.value)
    assert "results_dir=FOLDER" in str(caught.value)
    assert _names(tmp_path) == ["file"]


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """Return a folder in which this process may not write during the test."""
    if os.getuid():
        tmp_path.chmod(0o555)
        yield tmp_path
        tmp_path.chmod(0o755)
        return
    # Root may write anywhere, so it becomes the user nobody, who may not enter pytest's folders.
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        os.seteuid(65534)
        yield Path(name)
        os.seteuid(0)


@pytest.mark.parametrize("place", ["", "runs", "deep/runs"])
def test_a_folder_of_another_user_is_named(locked, place):
    with pytest.raises(InputError, match=r"results_dir=.* cannot be written: Permission denied"):
        check_writable(locked / place)
    assert _names(locked) == []


def test_a_folder_that_may_not_be_entered_is_named(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(InputError, match=r"cannot be written: Permission denied"):
            check_writable(closed / "deep" / "runs")
    finally:
        os.seteuid(before)
        closed.chmod(0o700)
    assert _names(tmp_path) == ["closed"]


def test_a_folder_that_another_process_removes_is_made_again(tmp_path, monkeypatch):
    made = tempfile.NamedTemporaryFile
    gone = iter([True, True])

    def after_removal(**where):
        if next(gone, False):
            where["dir"].rmdir()
        return made(**where)

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", after_removal)
    check_writable(tmp_path / "results" / "runs")
    assert [*tmp_path.iterdir()] == []
