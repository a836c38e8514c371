"""Job files and plans of sweeps: written, read back, torn, or refused by the disk."""

import json
import os
import platform
from pathlib import Path

import pytest

from so_clip.results.job_files import (
    SWEEP_FILE,
    Job,
    JobFiles,
    SweepPlan,
    may_be_alive,
    read_plan,
)
from tests.helpers.command import python

WRITE_FROM_ANOTHER_PROCESS = """
import sys
from pathlib import Path
from so_clip.results.job_files import Job, JobFiles
JobFiles(Path(sys.argv[1])).write(3, Job(["seed=1"], "failed", "r/run", "no", 2))
print("torch" in sys.modules)
"""


def test_a_job_of_another_process_is_read_back_without_torch(tmp_path: Path) -> None:
    assert python(WRITE_FROM_ANOTHER_PROCESS, tmp_path) == "False\n"
    (tmp_path / "jobs" / "note.txt").write_text("")
    (number, job), *others = JobFiles(tmp_path).read().items()
    assert not others
    assert job.host == platform.node()
    assert job.pid != os.getpid()
    assert not may_be_alive(job)
    expected = Job(["seed=1"], "failed", "r/run", "no", 2, pid=job.pid, host=job.host)
    assert (number, job) == (3, expected)


@pytest.mark.parametrize(
    "torn",
    [
        '{"state": ',
        "{}",
        "[1]",
        {"state": [1]},
        {"pid": "x"},
        {"pid": 2**31},
        {"overrides": 5},
        {"overrides": [1]},
        {"message": 1},
        {"exit_code": "1"},
    ],
)
def test_a_torn_job_file_is_left_out(tmp_path: Path, torn: str | dict[str, object]) -> None:
    JobFiles(tmp_path).write(0, Job(["seed=1"], "done", accuracy_percent=1.0))
    file = tmp_path / "jobs" / "0.json"
    assert JobFiles(tmp_path).read()[0].state == "done"
    changed = torn if isinstance(torn, str) else json.dumps(json.loads(file.read_text()) | torn)
    file.write_text(changed)
    assert JobFiles(tmp_path).read() == {}


def test_the_writer_knows_a_job_that_the_disk_refused(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("not a folder")
    files = JobFiles(tmp_path)
    files.write(0, Job(["seed=1"], "failed", message="the disk is full"))
    assert files.read()[0].message == "the disk is full"


def test_a_process_of_another_machine_may_be_alive() -> None:
    assert may_be_alive(Job([], pid=os.getpid(), host=platform.node()))
    assert may_be_alive(Job([], pid=1, host=platform.node()))
    assert may_be_alive(Job([], pid=os.getpid(), host="another machine"))


def test_a_plan_is_read_back(tmp_path: Path) -> None:
    values = {"command": ["/x/so_clip", "-m", "seed=1,2"], "jobs": [["seed=1"], ["seed=2"]]}
    (tmp_path / SWEEP_FILE).write_text(json.dumps(values))
    assert read_plan(tmp_path) == SweepPlan(["-m", "seed=1,2"], [["seed=1"], ["seed=2"]])


@pytest.mark.parametrize("text", ["[]", "{}", '{"jobs": 5}', '{"jobs": [["a"], 3]}', "{", "null"])
def test_a_torn_plan_is_no_plan(tmp_path: Path, text: str) -> None:
    (tmp_path / SWEEP_FILE).write_text(text)
    assert read_plan(tmp_path) is None
