"""What sweeps were to do, and which of their jobs have no run yet."""

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from so_clip.config.settings import NO_DIFFERENCE
from so_clip.results import job_files as jobs
from so_clip.results.job_files import JOBS_DIR, SWEEP_FILE, Job
from so_clip.results.run_files import PROVENANCE_FILE, read_object
from so_clip.status.runs import (
    DONE,
    FAILED,
    INTERRUPTED,
    MISSING,
    RUNNING,
    SETTLED_NS,
    SILENCE_SECONDS,
    STARTING,
    WAITING,
    Run,
    texts,
)
from so_clip.system.locks import is_locked

SWEEPS_DIR = ".sweeps"
# With or without these, two command lines ask for the same run.
_ASIDE = frozenset({*NO_DIFFERENCE, "force", "checkpoint_seconds"})

Key = tuple[str, ...]


@dataclass(frozen=True)
class Told:
    """What a job has told of itself, and when, in seconds since 1970."""

    job: Job
    at: float

    @property
    def is_at_work(self) -> bool:
        """Whether the job was begun lately, by a process that is there as far as one can tell."""
        fresh = time.time() - self.at < SILENCE_SECONDS
        return self.job.state == RUNNING and fresh and jobs.may_be_alive(self.job)


@dataclass(frozen=True)
class Sweep:
    """A sweep: its command's arguments, the overrides of its jobs, and what these have told.

    `is_alive` says whether a process is at work on it.
    """

    folder: Path
    command: tuple[str, ...]
    jobs: Mapping[int, Key]
    told: Mapping[int, Told]
    is_alive: bool


@dataclass
class SweepFolders:
    """All sweeps of a folder of results, oldest first, read anew by `read` where they changed.

    `unreadable` names, after each `read`, those whose sweep.json cannot be used.
    """

    results_dir: Path
    unreadable: list[str] = field(default_factory=list)
    _planned: dict[Path, tuple[tuple[str, ...], tuple[Key, ...]]] = field(default_factory=dict)
    _told: dict[Path, dict[int, tuple[int, Told]]] = field(default_factory=dict)

    def read(self) -> list[Sweep]:
        """Return the sweeps; where there are none, an empty list."""
        self.unreadable.clear()
        try:
            folders = sorted(path.parent for path in self._root.glob(f"*/{SWEEP_FILE}"))
        except OSError:
            return []
        return [sweep for folder in folders if (sweep := self._sweep(folder))]

    @property
    def _root(self) -> Path:
        return self.results_dir / SWEEPS_DIR

    def _sweep(self, folder: Path) -> Sweep | None:
        if folder not in self._planned:  # written once, when the sweep starts
            values = read_object(folder / SWEEP_FILE)
            listed = values.get("jobs")
            planned = [texts(job) for job in listed] if isinstance(listed, list) else [None]
            if None in planned:
                self.unreadable.append(f"{folder / SWEEP_FILE} cannot be used.")
                return None
            command = texts(values.get("command")) or ()
            self._planned[folder] = command[1:], tuple(job or () for job in planned)
        command, overrides = self._planned[folder]
        told = self._told_in(folder)
        # A sweeper that chooses as it goes has planned nothing.
        begun = {number: tuple(each.job.overrides) for number, each in told.items()}
        every = {number: each for number, each in begun.items() if each} | dict(
            enumerate(overrides)
        )
        alive = is_locked(folder) or any(each.is_at_work for each in told.values())
        return Sweep(folder, command, every, told, bool(alive))

    def _told_in(self, folder: Path) -> dict[int, Told]:
        before, now_ns = self._told.get(folder, {}), time.time_ns()
        files: dict[int, tuple[int, Told]] = {}
        try:
            with os.scandir(folder / JOBS_DIR) as entries:
                for entry in entries:
                    stem, _, ending = entry.name.partition(".")
                    if ending != "json" or not stem.isdecimal():
                        continue
                    mtime_ns = entry.stat().st_mtime_ns
                    known = before.get(int(stem))
                    if known is None or known[0] != mtime_ns:
                        settled = mtime_ns if now_ns - mtime_ns > SETTLED_NS else -1
                        known = settled, Told(_job(Path(entry.path)), mtime_ns / 1e9)
                    files[int(stem)] = known
        except OSError:  # not there yet, or gone since
            pass
        self._told[folder] = files
        return {number: each for number, (_, each) in files.items()}


def _job(path: Path) -> Job:
    """Return what a job's file says, and nothing of what is torn or of another kind."""
    values = read_object(path)

    def text(key: str) -> str:
        return value if isinstance(value := values.get(key), str) else ""

    pid = values.get("pid")
    return Job(
        texts(values.get("overrides")) or (),
        state=text("state"),
        run_dir=text("run_dir"),
        message=text("message"),
        pid=pid if isinstance(pid, int) and 0 < pid < 2**31 else 0,
        host=text("host"),
    )


def key_of(overrides: Iterable[str]) -> Key:
    """Return what two command lines share that ask for the same run: their options, sorted."""
    return tuple(sorted(each for each in overrides if each.partition("=")[0] not in _ASIDE))


@dataclass
class Ledger:
    """Runs and the jobs of sweeps, brought together."""

    _given: dict[str, Key | None] = field(default_factory=dict)

    def settle(
        self, runs: dict[str, Run], sweeps: list[Sweep]
    ) -> tuple[list[Run], list[tuple[Sweep, list[Run]]]]:
        """Say of each job which run it is, or that there is none.

        A sweep that is repeated has the same jobs: what was last heard of one counts for both. So
        does a single run with the options of a job.

        Args:
            runs: by their folders' paths.
            sweeps: oldest first.

        Returns:
            All runs, with those that have no folder; and the runs of each sweep, job by job.
        """
        planned = {key_of(each): each for sweep in sweeps for each in sweep.jobs.values()}
        heard = {
            key_of(sweep.jobs[number]): told
            for sweep in sweeps
            for number, told in sweep.told.items()
            if number in sweep.jobs
        }
        to_come = {
            key_of(overrides)
            for sweep in sweeps
            if sweep.is_alive
            for number, overrides in sweep.jobs.items()
            if number not in sweep.told
        }
        found = self._folders(runs, sweeps, planned)
        every = dict(runs)
        by_key: dict[Key, Run] = {}
        for key, overrides in planned.items():
            path = found.get(key)
            if path is not None:
                run = replace(runs[path], overrides=runs[path].overrides or overrides)
                every[path] = by_key[key] = _begun_anew(run, heard.get(key), key in to_come)
            else:
                by_key[key] = _without_folder(overrides, heard.get(key), key in to_come)
                every[" ".join(key)] = by_key[key]
        # A run that reads its data yet has told nothing: its job stands for it.
        begun = sum(run.state == RUNNING for key, run in by_key.items() if key not in found)
        for path in [path for path, run in runs.items() if run.remark == STARTING][:begun]:
            del every[path]
        per_sweep = [
            (sweep, [by_key[key_of(sweep.jobs[number])] for number in sorted(sweep.jobs)])
            for sweep in sweeps
        ]
        return list(every.values()), per_sweep

    def _folders(
        self, runs: dict[str, Run], sweeps: list[Sweep], planned: Mapping[Key, Key]
    ) -> dict[Key, str]:
        """Return the folders of runs by what was asked for, as far as that is known.

        A job tells of its folder in the end, a run of its options until then.
        """
        # Names of folders are unique, also where results were moved.
        paths = {os.path.basename(path): path for path in runs}  # noqa: PTH119
        found = {key_of(run.overrides): path for path, run in runs.items() if run.overrides}
        for sweep in sweeps:
            for number, told in sweep.told.items():
                path = paths.get(Path(told.job.run_dir or "").name)
                if path is not None and number in sweep.jobs:
                    found[key_of(sweep.jobs[number])] = path
        if planned.keys() - found.keys():
            found = self._single_runs(runs, set(found.values())) | found
        return found

    def _single_runs(self, runs: dict[str, Run], of_jobs: set[str]) -> dict[Key, str]:
        """Return the folders of runs that no sweep began, by the options they were given."""
        found = {}
        for path, run in runs.items():
            if path in of_jobs or run.state != DONE:
                continue
            if path not in self._given:
                given = texts(read_object(Path(path) / PROVENANCE_FILE).get("overrides"))
                self._given[path] = key_of(given) if given else None
            key = self._given[path]
            if key is not None:
                found[key] = path
        return found


def _begun_anew(run: Run, told: Told | None, to_come: bool) -> Run:
    """Return a run as it is once its job is at work, or will be: its folder shows that later."""
    repeats = run.state in (FAILED, INTERRUPTED)
    if repeats and to_come:
        return replace(run, state=WAITING, remark="")
    if told is None or told.job.run_dir or told.at < run.changed_at or not told.is_at_work:
        return run  # a job that knows its folder has come to it
    if repeats or (run.state == DONE and any(map(_forces, told.job.overrides))):
        return Run(run.name, RUNNING, run.changed_at, remark=STARTING, overrides=run.overrides)
    return run


def _forces(override: str) -> bool:
    key, _, value = override.partition("=")
    return key.lstrip("+") == "force" and value.lower() == "true"


def _without_folder(overrides: Key, told: Told | None, to_come: bool) -> Run:
    state, remark, at = WAITING if to_come else MISSING, "", 0.0
    if told is not None:
        at = told.at
        if told.job.state == jobs.FAILED and not to_come:
            state, remark = FAILED, " ".join(str(told.job.message).split())
        elif told.is_at_work:
            state, remark = RUNNING, STARTING
    return Run(" ".join(overrides), state, at, remark=remark, overrides=overrides)
