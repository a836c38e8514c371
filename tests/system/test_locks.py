"""Locks on folders: one holder at a time, none outlives its process, and no file is left."""

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from so_clip.system.locks import LOCK_FILE, is_locked, lock_new, unlock
from tests.helpers.command import environment, python

fcntl = pytest.importorskip("fcntl")

# Adds 1 to a number in a file whenever it gets the lock, and says how often.
COUNT = """
import sys, time
from pathlib import Path
from so_clip.system.locks import lock_new, unlock

folder, number = Path(sys.argv[1]), Path(sys.argv[2])
got = 0
for _ in range(400):
    try:
        lock = lock_new(folder)
    except BlockingIOError:
        time.sleep(1e-3)  # the holder may be waiting for this very core
        continue
    number.write_text(str(int(number.read_text()) + 1))
    got += 1
    unlock(folder, lock)
print(got)
"""
HOLD = """
import sys, time
from pathlib import Path
from so_clip.system.locks import lock_new

lock = lock_new(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def test_a_lock_keeps_others_away_and_leaves_nothing(tmp_path):
    folder = tmp_path / "new"
    lock = lock_new(folder)
    assert is_locked(folder)
    with pytest.raises(BlockingIOError):
        lock_new(folder)
    unlock(folder, lock)
    assert is_locked(folder) is False
    assert [*folder.iterdir()] == []


def test_nothing_is_locked_where_nothing_is(tmp_path):
    assert is_locked(tmp_path) is False
    assert is_locked(tmp_path / "none") is False


def test_two_at_once_never_hold_it_both(tmp_path):
    """Though each takes the file away, which the other may have opened just before."""
    number = tmp_path / "number"
    number.write_text("0")
    with ThreadPoolExecutor(2) as pool:
        got = [int(each) for each in pool.map(lambda _: python(COUNT, tmp_path, number), "ab")]
    assert int(number.read_text()) == sum(got)
    assert min(got) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["number"]


def test_the_lock_of_a_killed_process_is_free_and_its_file_taken_over(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, env=environment()
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    assert is_locked(tmp_path)
    holder.kill()
    holder.communicate()
    assert (tmp_path / LOCK_FILE).exists()
    assert is_locked(tmp_path) is False
    unlock(tmp_path, lock_new(tmp_path))
    assert [*tmp_path.iterdir()] == []


def test_a_file_that_is_anothers_by_now_is_left_to_it(tmp_path):
    first = lock_new(tmp_path)
    (tmp_path / LOCK_FILE).unlink()  # by hand, say
    second = lock_new(tmp_path)
    unlock(tmp_path, first)
    assert is_locked(tmp_path)
    unlock(tmp_path, second)
    assert is_locked(tmp_path) is False


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_does_not_keep_what_its_parent_gave_back(tmp_path):
    code = f"{HOLD.partition('print')[0]}\n" + (
        "import os\n"
        "from so_clip.system.locks import is_locked, unlock\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    time.sleep(600)\n"
        "unlock(Path(sys.argv[1]), lock)\n"
        "again = lock_new(Path(sys.argv[1]))\n"
        "print(again is not None)\n"
        "os.kill(child, 9)\n"
    )
    assert python(code, tmp_path) == "True\n"


def test_a_file_that_may_only_be_read_can_be_locked_still(tmp_path):
    """One that another user's killed process left."""
    file: Path = tmp_path / LOCK_FILE
    file.touch(mode=0o444)
    lock = lock_new(tmp_path)
    assert lock is not None
    assert is_locked(tmp_path)
    unlock(tmp_path, lock)


@pytest.fixture
def first_flock_says(monkeypatch):
    """Return a function that has the first lock asked for answered by an error, as on NFS."""

    def refuse(number: int) -> None:
        waiting, flock = [number], fcntl.flock

        def answer(descriptor: int, operation: int) -> None:
            if waiting:
                raise OSError(waiting.pop(), "as a server says")
            flock(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", answer)

    return refuse


def test_a_file_that_another_machine_has_taken_away_is_asked_for_anew(tmp_path, first_flock_says):
    first_flock_says(errno.ESTALE)
    lock = lock_new(tmp_path)
    assert lock is not None
    assert is_locked(tmp_path)
    unlock(tmp_path, lock)
    lock = lock_new(tmp_path)
    first_flock_says(errno.ESTALE)
    assert is_locked(tmp_path)
    unlock(tmp_path, lock)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_there_are_no_locks_a_file_that_may_be_anothers_stays(
    tmp_path, first_flock_says, number
):
    (tmp_path / LOCK_FILE).touch()
    first_flock_says(number)
    assert lock_new(tmp_path) is None
    assert (tmp_path / LOCK_FILE).exists()


def test_what_is_wrong_with_a_lock_is_no_lack_of_locks(tmp_path, first_flock_says):
    first_flock_says(errno.EIO)
    with pytest.raises(OSError, match="as a server says"):
        lock_new(tmp_path)
