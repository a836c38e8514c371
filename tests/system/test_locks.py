"""Locks on folders: one holder at a time, no lock outlives its process, no file is left."""

import errno
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from so_clip.system.locks import LOCK_FILE, is_locked, lock_folder, unlock
from tests.helpers.command import environment, python

fcntl = pytest.importorskip("fcntl")

# Adds 1 to the number in a file whenever it gets the lock, and prints how often it did.
COUNT = """
import sys, time
from pathlib import Path
from so_clip.system.locks import lock_folder, unlock

folder, number = Path(sys.argv[1]), Path(sys.argv[2])
count = 0
for _ in range(200):
    try:
        lock = lock_folder(folder)
    except BlockingIOError:
        continue
    number.write_text(str(int(number.read_text()) + 1))
    count += 1
    unlock(lock)
print(count)
"""
HOLD = """
import os, sys, time
from pathlib import Path
from so_clip.system.locks import lock_folder, unlock

lock = lock_folder(Path(sys.argv[1]))
"""


def test_a_lock_keeps_other_processes_away_and_leaves_no_file(tmp_path):
    folder = tmp_path / "new"
    lock = lock_folder(folder)
    assert is_locked(folder)
    with pytest.raises(BlockingIOError):
        lock_folder(folder)
    unlock(lock)
    assert is_locked(folder) is False
    assert [*folder.iterdir()] == []


def test_asking_for_a_lock_makes_no_file(tmp_path):
    assert is_locked(tmp_path) is False
    assert is_locked(tmp_path / "none") is False
    assert [*tmp_path.iterdir()] == []


def test_two_processes_never_hold_the_same_lock(tmp_path):
    """Each removes the lock file, which the other may have opened just before."""
    number = tmp_path / "number"
    number.write_text("0")
    with ThreadPoolExecutor(2) as pool:
        counts = [int(out) for out in pool.map(lambda _: python(COUNT, tmp_path, number), "ab")]
    assert int(number.read_text()) == sum(counts)
    assert min(counts) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["number"]


def test_the_next_process_takes_over_the_lock_file_of_a_killed_one(tmp_path):
    code = HOLD + "print('held', flush=True)\ntime.sleep(600)\n"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, env=environment()
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    assert is_locked(tmp_path)
    holder.kill()
    holder.communicate()
    assert (tmp_path / LOCK_FILE).exists()
    assert is_locked(tmp_path) is False
    unlock(lock_folder(tmp_path))
    assert [*tmp_path.iterdir()] == []


def test_unlocking_does_not_remove_the_lock_file_of_another_process(tmp_path):
    first = lock_folder(tmp_path)
    (tmp_path / LOCK_FILE).unlink()  # by hand
    second = lock_folder(tmp_path)
    unlock(first)
    assert is_locked(tmp_path)
    unlock(second)
    assert is_locked(tmp_path) is False


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    code = HOLD + (
        "child = os.fork()\n"
        "if not child:\n"
        "    time.sleep(600)\n"
        "unlock(lock)\n"
        "print(lock_folder(Path(sys.argv[1])) is not None)\n"
        "os.kill(child, 9)\n"
    )
    assert python(code, tmp_path) == "True\n"


def test_another_user_can_take_over_a_lock_file(tmp_path):
    before = os.umask(0o077)
    try:
        lock = lock_folder(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / LOCK_FILE).stat().st_mode) == 0o666
    unlock(lock)


def test_a_pipe_in_place_of_the_lock_file_does_not_block(tmp_path):
    os.mkfifo(tmp_path / LOCK_FILE)
    assert is_locked(tmp_path) is False
    unlock(lock_folder(tmp_path))


def test_a_link_in_place_of_the_lock_file_is_refused(tmp_path):
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / LOCK_FILE).symlink_to("precious")
    with pytest.raises(OSError, match="symbolic links"):
        lock_folder(tmp_path)
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert stat.S_IMODE((tmp_path / "precious").stat().st_mode) != 0o666


@pytest.fixture
def first_lock_fails(monkeypatch):
    """Return a function that makes the first lock request fail with an error number, as on NFS."""

    def fail(number: int) -> None:
        numbers, flock = [number], fcntl.flock

        def answer(descriptor: int, operation: int) -> None:
            if numbers:
                raise OSError(numbers.pop(), "the server refuses")
            flock(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", answer)

    return fail


def test_a_file_that_another_machine_removed_is_made_again(tmp_path, first_lock_fails):
    first_lock_fails(errno.ESTALE)
    lock = lock_folder(tmp_path)
    assert lock is not None
    assert is_locked(tmp_path)
    unlock(lock)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_used_without_a_lock(tmp_path, first_lock_fails, number):
    (tmp_path / LOCK_FILE).touch()  # it may be another process's file
    first_lock_fails(number)
    assert lock_folder(tmp_path) is None
    assert (tmp_path / LOCK_FILE).exists()
    first_lock_fails(number)
    assert is_locked(tmp_path) is None


def test_other_errors_of_a_lock_are_raised(tmp_path, first_lock_fails):
    first_lock_fails(errno.EIO)
    with pytest.raises(OSError, match="the server refuses"):
        lock_folder(tmp_path)
