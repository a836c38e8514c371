"""Job files: one small JSON file for each job of a sweep.

A job may run in another process or on another machine. The process that started the sweep, and
`status`, read these files to see how each job ended.
"""

import os
import platform
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from so_clip.errors import InputError
from so_clip.system import atomic
from so_clip.system.safe_open import read_plain

DONE, SKIPPED, BUSY, FAILED, RUNNING = "done", "skipped", "busy", "failed", "running"
JOBS_DIR = "jobs"
SWEEP_FILE = "sweep.json"


@dataclass(config=ConfigDict(strict=True))
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

    overrides: list[str]
    state: str = RUNNING
    run_dir: str | None = None
    message: str | None = None
    exit_code: int | None = None
    accuracy_percent: Annotated[float, Field(ge=0, le=100)] | None = None
    pid: Annotated[int, Field(ge=0, lt=2**31)] = 0
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
        jobs = {number: read_job(file) for number, file in job_paths(self._folder.parent).items()}
        jobs |= self._written
        return {number: job for number, job in sorted(jobs.items()) if job is not None}


def job_paths(sweep_dir: Path) -> dict[int, Path]:
    """Return the job files of a sweep by their numbers."""
    files = (sweep_dir / JOBS_DIR).glob("*.json")
    return {int(file.stem): file for file in files if file.stem.isdecimal()}


def read_job(file: Path) -> Job | None:
    """Return a job from its file, and None if the file is torn or has values of other types."""
    try:
        return TypeAdapter(Job).validate_json(read_plain(file))
    except (OSError, ValueError):
        return None


@dataclass(frozen=True, config=ConfigDict(strict=True))
class SweepPlan:
    """The content of sweep.json.

    Attributes:
        command: the arguments of the sweep's command line.
        jobs: the overrides of each job; empty for a sweeper that chooses its jobs as it goes.
        finished: the number of jobs with runs that were finished before the sweep. They are the
            first ones.
        launched_at: when the first of the other jobs could start, in seconds since 1970.
    """

    command: list[str]
    jobs: list[list[str]]
    finished: Annotated[int, Field(ge=0)] = 0
    launched_at: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None

    def seconds_left(self, ended: int, now: float) -> float | None:
        """Return the remaining seconds of the sweep at its mean speed; None if it is unknown.

        Args:
            ended: the number of jobs that ended, without the finished ones.
            now: in seconds since 1970.
        """
        remaining = len(self.jobs) - self.finished - ended
        if self.launched_at is None or ended <= 0 or remaining <= 0:
            return None
        return max(0.0, now - self.launched_at) / ended * remaining


def read_plan(sweep_dir: Path) -> SweepPlan | None:
    """Return the plan of a sweep, and None if its sweep.json is torn or not there."""
    try:
        plan = TypeAdapter(SweepPlan).validate_json(read_plain(sweep_dir / SWEEP_FILE))
    except (OSError, ValueError):
        return None
    return replace(plan, command=plan.command[1:])


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
