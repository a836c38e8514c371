"""Job files: one small JSON file for each job of a sweep.

A job may run in another process or on another machine. The process that started the sweep, and
`status`, read these files to see how each job ended.
"""

import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from so_clip.errors import InputError
from so_clip.results.run_files import is_texts, read_object
from so_clip.system import atomic

DONE, SKIPPED, BUSY, FAILED, RUNNING = "done", "skipped", "busy", "failed", "running"
JOBS_DIR = "jobs"
SWEEP_FILE = "sweep.json"
_FIELD_TYPES: dict[str, Any] = {
    "overrides": list,
    "state": str,
    "run_dir": str | None,
    "message": str | None,
    "exit_code": int | None,
    "accuracy_percent": float | int | None,
    "pid": int,
    "host": str,
}


@dataclass
class Job:
    """One job of a sweep.

    Attributes:
        overrides: the flags from `flags_of`, then the options of the run.
        state: running | done | skipped (finished before) | busy (another process is running this
            configuration) | failed. The file of a killed job still says running.
        run_dir: the run's folder, once it is known.
        message, exit_code: of a failed or busy job.
        accuracy_percent: of a done or skipped job.
        pid, host: the process that wrote the file, and its machine.
    """

    overrides: Sequence[str]
    state: str = RUNNING
    run_dir: str | None = None
    message: str | None = None
    exit_code: int | None = None
    accuracy_percent: float | None = None
    pid: int = 0
    host: str = ""


class JobFiles:
    """Reads and writes the job files of one sweep.

    It also keeps the jobs that it wrote in memory, because a full disk can refuse their files.
    """

    def __init__(self, sweep_dir: Path) -> None:
        self._folder = sweep_dir / JOBS_DIR
        self._written: dict[int, Job] = {}

    def write(self, number: int, job: Job) -> None:
        """Record the state of a job."""
        job.pid, job.host = os.getpid(), platform.node()
        self._written[number] = job
        with suppress(InputError):
            atomic.write_json(self._folder / f"{number}.json", asdict(job))

    def read(self) -> dict[int, Job]:
        """Return the started jobs by their numbers; torn files are left out."""
        files = {int(file.stem): file for file in self._folder.glob("*.json") if is_job_file(file)}
        jobs = {number: read_job(file) for number, file in files.items()} | self._written
        return {number: job for number, job in sorted(jobs.items()) if job is not None}


def is_job_file(file: Path) -> bool:
    """Return whether a file has the name of a job file: the job's number."""
    return file.suffix == ".json" and file.stem.isdecimal()


def read_job(file: Path) -> Job | None:
    """Return a job from its file, and None if the file is torn or has values of other types."""
    values = read_object(file)
    known = {name: values[name] for name in _FIELD_TYPES if name in values}
    if not all(isinstance(value, _FIELD_TYPES[name]) for name, value in known.items()):
        return None
    if not {"overrides", "state"} <= known.keys() or not is_texts(known["overrides"]):
        return None
    return Job(**known) if known.get("pid", 0) in range(2**31) else None


@dataclass(frozen=True)
class SweepPlan:
    """The content of sweep.json.

    Attributes:
        command: the arguments of the sweep's command line.
        jobs: the overrides of each job; empty for a sweeper that chooses its jobs as it goes.
    """

    command: list[str]
    jobs: list[list[str]]


def read_plan(sweep_dir: Path) -> SweepPlan | None:
    """Return the plan of a sweep, and None if its sweep.json is torn or not there."""
    values = read_object(sweep_dir / SWEEP_FILE)
    command, jobs = values.get("command", []), values.get("jobs")
    if not is_texts(command) or not isinstance(jobs, list) or not all(map(is_texts, jobs)):
        return None
    return SweepPlan(command[1:], jobs)


def may_be_alive(job: Job) -> bool:
    """Return whether the job's process may exist; True for another machine's, to be safe."""
    if job.host != platform.node() or os.name == "nt":  # on Windows, os.kill would end the process
        return True
    try:
        os.kill(job.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
