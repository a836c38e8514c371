"""Atomic files, also on full disks and in read-only folders."""

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from so_clip.errors import InputError
from so_clip.system import atomic
from tests.helpers.command import environment
from tests.helpers.small_disk import on_small_disk

# Fills a disk of 64 KiB, replaces a small file there by one that fits and by one that does not.
FULL_DISK = """
import json, sys
from pathlib import Path
from so_clip.system import atomic
from so_clip.errors import InputError

folder = Path(sys.argv[1])
atomic.write_text(folder / "a.txt", "old")
atomic.write_text(folder / "a.txt", "new")
try:
    atomic.write_bytes(folder / "a.txt", bytes(1_000_000))
    message = None
except InputError as error:
    message = str(error)
names = sorted(path.name for path in folder.iterdir())
print(json.dumps([message, names, (folder / "a.txt").read_text()]))
"""


def _contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_text_and_json_are_read_back_as_written(tmp_path):
    atomic.write_text(tmp_path / "new" / "deep" / "a.txt", "Größe ½\n")
    assert (tmp_path / "new" / "deep" / "a.txt").read_bytes() == "Größe ½\n".encode()
    atomic.write_json(tmp_path / "a.json", {"κ": [5e-4, None]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text == '{\n  "κ": [\n    0.0005,\n    null\n  ]\n}\n'


def test_invalid_unicode_is_written_as_printable_escapes(tmp_path):
    name = b"caf\xe9.png".decode(errors="surrogateescape")
    atomic.write_json(tmp_path / "a.json", {"command": [name], name: "\\udce9 é"})
    values = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert values == {"command": ["caf\\udce9.png"], "caf\\udce9.png": "\\udce9 é"}
    atomic.write_text(tmp_path / "a.csv", f"path\n{name}\n")
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == "path\ncaf\\udce9.png\n"


def test_full_disk_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    done = on_small_disk(tmp_path, "64k", f'"$0" -c "$1" {tmp_path}', FULL_DISK)
    message, names, text = json.loads(done.out)
    assert message is not None, "the file fitted: the disk was not full"
    assert str(tmp_path / "a.txt") in message
    assert "No space left" in message
    assert "results_dir=" in message
    assert names == ["a.txt"]
    assert text == "new"


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"cannot write .*file/a\.txt"):
        atomic.write_text(tmp_path / "file" / "a.txt", "x")
    assert _contents(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_where_the_file_should_be_is_left_alone(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(InputError, match=r"a\.txt"):
        atomic.write_text(tmp_path / "a.txt", "x")
    assert _contents(tmp_path) == ["a.txt"]


def test_a_folder_that_cannot_be_made_is_an_input_error():
    with pytest.raises(InputError, match="cannot write /proc/nowhere"):
        atomic.write_text(Path("/proc/nowhere/a.txt"), "x")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_values_that_json_lacks_leave_the_old_file(tmp_path, value):
    atomic.write_json(tmp_path / "a.json", 1)
    with pytest.raises((TypeError, ValueError)):
        atomic.write_json(tmp_path / "a.json", {"accuracy_percent": value})
    assert _contents(tmp_path) == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "1\n"


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        atomic.write_text(tmp_path / "a.txt", "x")
        assert os.umask(umask) == umask, "the process's umask has been changed"
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o666 & ~umask


def test_the_file_is_synced_and_then_its_folder(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def watched(descriptor: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    atomic.write_text(tmp_path / "a.txt", "x")
    assert synced == [False, True]


def test_the_unfinished_file_of_a_killed_process_is_removed_later(tmp_path):
    code = "import os, sys, pathlib\nfrom so_clip.system import atomic\n" + (
        "with atomic.writing(pathlib.Path(sys.argv[1]) / 'a.txt') as file:\n"
        "    file.write(b'half')\n"
        "    os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path], env=environment()).returncode == 9
    (tmp_path / ".mine.txt").touch()
    (left,) = tmp_path.glob(".a.txt.*")
    atomic.remove_dead(tmp_path)
    assert left.exists()
    os.utime(left, (0, 0))
    atomic.remove_dead(tmp_path)
    assert _contents(tmp_path) == [".mine.txt"]
    atomic.remove_dead(tmp_path / "none")


def test_a_reader_never_sees_a_partial_file(tmp_path):
    path = tmp_path / "a.txt"
    texts = ["a" * 300_000, "b" * 100]
    atomic.write_text(path, texts[0])
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for text in texts:
                atomic.write_text(path, text)

    writer = threading.Thread(target=write)
    writer.start()
    seen = {path.read_text() for _ in range(300)}
    stop.set()
    writer.join()
    assert seen <= set(texts)
    assert _contents(tmp_path) == ["a.txt"]


def test_the_message_names_the_commands_option_for_its_folder():
    with (
        pytest.raises(atomic.CannotWrite, match=r"another folder with -o FOLDER\.") as caught,
        atomic.output_option("-o FOLDER"),
    ):
        atomic.write_text(Path("/proc/a.txt"), "")
    assert "results_dir" not in str(caught.value)
    with pytest.raises(InputError, match="results_dir=FOLDER"):
        atomic.write_text(Path("/proc/a.txt"), "")
