"""The sweeps of a results folder, and the run of each of their jobs."""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from so_clip.results import job_files
from so_clip.results.job_files import SWEEP_FILE, Job
from so_clip.status.runs import (
    DONE,
    FAILED,
    MISSING,
    RUNNING,
    SILENCE_SECONDS,
    STARTING,
    WAITING,
    Run,
)
from so_clip.system.commands import command
from so_clip.system.locks import is_locked

SWEEPS_DIR = ".sweeps"

# The overrides of a run, sorted and without `force`: the same for all command lines of one run.
Key = tuple[str, ...]


def key_of(overrides: Iterable[str]) -> Key:
    """Return the overrides as a key."""
    return tuple(sorted(text for text in overrides if text.partition("=")[0] != "force"))


@dataclass(frozen=True)
class Record:
    """What a job file says, and when it was written, in seconds since 1970."""

    job: Job
    written_at: float

    @property
    def is_running(self) -> bool:
        """Whether the job started recently, in a process that exists as far as is known."""
        is_recent = time.time() - self.written_at < SILENCE_SECONDS
        return (
            self.job.state == job_files.RUNNING and is_recent and job_files.may_be_alive(self.job)
        )


@dataclass(frozen=True)
class Sweep:
    """One sweep.

    Attributes:
        name: of its folder, the time when it started.
        command: the arguments of its command line.
        jobs: the overrides of all its jobs, by number.
        records: of the jobs that started, by number.
        is_running: whether a process works on it.
        seconds_left: at the speed of the jobs that have ended; None if it is unknown.
    """

    name: str
    command: Sequence[str]
    jobs: Mapping[int, Sequence[str]]
    records: Mapping[int, Record]
    is_running: bool
    seconds_left: float | None = None

    @property
    def command_line(self) -> str:
        """The sweep's command without `force`, which would repeat finished runs."""
        arguments = [text for text in self.command if text.partition("=")[0] != "force"]
        return command(*arguments)


def read_sweeps(results_dir: Path, unreadable: list[str]) -> list[Sweep]:
    """Return the sweeps of a results folder, oldest first.

    Args:
        results_dir: the folder.
        unreadable: gets one line for each sweep.json that cannot be used.
    """
    sweeps = []
    for file in sorted(results_dir.glob(f"{SWEEPS_DIR}/*/{SWEEP_FILE}")):
        folder = file.parent
        plan = job_files.read_plan(folder)
        if plan is None:
            unreadable.append(f"{file} cannot be used.")
            continue
        records = _read_records(folder)
        # A sweeper that chooses jobs as it goes has planned none.
        jobs = {number: record.job.overrides for number, record in records.items()}
        jobs |= dict(enumerate(plan.jobs))
        running = is_locked(folder) or any(record.is_running for record in records.values())
        jobs = dict(sorted(jobs.items()))
        ended = [
            number
            for number, record in records.items()
            if number >= plan.finished and record.job.state != job_files.RUNNING
        ]
        left = plan.seconds_left(len(ended), time.time()) if running else None
        sweeps.append(Sweep(folder.name, plan.command, jobs, records, bool(running), left))
    return sweeps


def _read_records(folder: Path) -> dict[int, Record]:
    records = {}
    for number, file in job_files.job_paths(folder).items():
        with suppress(OSError):  # removed meanwhile
            job, written_at = job_files.read_job(file), file.stat().st_mtime
            if job is not None:
                records[number] = Record(job, written_at)
    return records


def match_jobs(
    runs: Mapping[str, Run], sweeps: Sequence[Sweep]
) -> tuple[list[Run], list[tuple[Sweep, list[Run]]]]:
    """Match each planned job to its run folder.

    Repeated sweeps share jobs; the latest record wins.

    Args:
        runs: by the paths of their folders.
        sweeps: oldest first.

    Returns:
        All runs, including one for each job without a folder; and each sweep with its jobs' runs.
    """
    # Names of run folders are unique, so they are found also after the results were moved.
    paths = {Path(path).name: path for path in runs}
    by_age = sorted(runs, key=lambda path: runs[path].changed_at)
    folders = {key_of(runs[path].overrides or ()): path for path in by_age if runs[path].overrides}
    planned: dict[Key, Sequence[str]] = {}
    records: dict[Key, Record] = {}
    waiting: set[Key] = set()
    for sweep in sweeps:
        for number, overrides in sweep.jobs.items():
            key = key_of(overrides)
            planned[key] = overrides
            record = sweep.records.get(number)
            if record is not None:
                records[key] = record
                path = paths.get(Path(record.job.run_dir or "").name)
                folders |= {} if path is None else {key: path}
            elif sweep.is_running:
                waiting.add(key)
    all_runs = dict(runs)
    for key, overrides in planned.items():
        folder = folders.setdefault(key, " ".join(overrides))
        run = runs.get(folder) or Run(folder, MISSING, overrides=tuple(overrides))
        all_runs[folder] = _current(run, records.get(key), key in waiting)
    matched = [
        (sweep, [all_runs[folders[key_of(overrides)]] for overrides in sweep.jobs.values()])
        for sweep in sweeps
    ]
    return list(all_runs.values()), matched


def _current(run: Run, record: Record | None, is_waiting: bool) -> Run:
    """Return a job's run in the state that its record and its sweep give it."""
    if run.state in (DONE, RUNNING):
        return run
    if record is not None and record.is_running:
        return replace(run, state=RUNNING, remark=STARTING)
    if is_waiting:
        return replace(run, state=WAITING, remark="")
    if run.state == MISSING and record is not None and record.job.state == job_files.FAILED:
        remark = " ".join((record.job.message or "").split())
        return replace(run, state=FAILED, changed_at=record.written_at, remark=remark)
    return run
