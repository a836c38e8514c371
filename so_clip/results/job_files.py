"""The jobs of a sweep: a small file each, so that whoever started the sweep can tell how it went.

A job may run in a process, or on a machine, of its own.
"""

import json
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from so_clip.errors import InputError
from so_clip.results.run_files import read_metrics
from so_clip.system import atomic

DONE, SKIPPED, BUSY, FAILED, RUNNING = "done", "skipped", "busy", "failed", "running"
JOBS_DIR = "jobs"
SWEEP_FILE = "sweep.json"


@dataclass
class Job:
    """One job of a sweep.

    Attributes:
        overrides: of its run, after what `flags_of` returns.
        state: done | skipped (finished before) | busy (another process is doing it) | failed |
            running; one that was killed stays running.
        run_dir: the run's folder, as soon as it is known.
        message, exit_code: of one that failed, or is busy.
        accuracy_percent: of one that is done, now or before.
        pid, host: where it runs.
    """

    overrides: Sequence[str]
    state: str = RUNNING
    run_dir: str | None = None
    message: str | None = None
    exit_code: int | None = None
    accuracy_percent: float | None = None
    pid: int = 0
    host: str = ""


# Of jobs that this process did, by the paths of their files: a disk may be too full for the files.
_of_this_process: dict[Path, Job] = {}


def planned_jobs(sweep_dir: Path) -> list[list[str]]:
    """Return the overrides of each job of a sweep; nothing where they are not known."""
    try:
        jobs = json.loads((sweep_dir / SWEEP_FILE).read_text(encoding="utf-8"))["jobs"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return jobs if isinstance(jobs, list) else []


def job_file(sweep_dir: Path, number: int) -> Path:
    """Return where a job tells how it is."""
    return sweep_dir / JOBS_DIR / f"{number}.json"


def tell(file: Path, job: Job) -> None:
    """Write how a job is. Where the disk is full, its own process remembers it at least."""
    job.pid, job.host = os.getpid(), platform.node()
    _of_this_process[file] = job
    with suppress(InputError):
        atomic.write_json(file, asdict(job))


def read_jobs(sweep_dir: Path) -> dict[int, Job]:
    """Return the jobs of a sweep that have begun, by their numbers."""
    files = {path for path in (sweep_dir / JOBS_DIR).glob("*.json") if path.stem.isdecimal()}
    files |= {path for path in _of_this_process if path.parent == sweep_dir / JOBS_DIR}
    jobs = {}
    for file in files:
        job = _of_this_process.get(file) or _read(file)
        if job is not None:
            jobs[int(file.stem)] = job
    return dict(sorted(jobs.items()))


def may_be_alive(job: Job) -> bool:
    """Whether the job's process is there, or on another machine, of which this one cannot tell."""
    if job.host != platform.node() or os.name == "nt":  # where asking would kill it
        return True
    try:
        os.kill(job.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _read(file: Path) -> Job | None:
    try:
        values: dict[str, Any] = read_metrics(file)
        job = Job(**{field.name: values[field.name] for field in fields(Job)})
    except (InputError, KeyError):
        return None
    return job if _is_whole(job) else None


def _is_whole(job: Job) -> bool:
    """Whether all that a summary reads of a job is of its type."""
    return (
        isinstance(job.state, str)
        and isinstance(job.overrides, list)
        and all(isinstance(each, str) for each in job.overrides)
        and isinstance(job.pid, int)
        and 0 <= job.pid < 2**31
        and isinstance(job.message, str | None)
        and isinstance(job.run_dir, str | None)
        and isinstance(job.exit_code, int | None)
    )
