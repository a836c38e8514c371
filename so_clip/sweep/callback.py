"""The record of a sweep: its plan at the start, its summary at the end, for all Hydra launchers."""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write

from so_clip.checks import optional_path, path
from so_clip.config.parse import resolving
from so_clip.errors import BAD_INPUT, FAILED, InputError, exit_code, note, report, show
from so_clip.results.job_files import FAILED as FAILED_JOB
from so_clip.results.job_files import JOBS_DIR, RUNNING, SWEEP_FILE, Job, JobFiles, may_be_alive
from so_clip.results.writable import check_writable
from so_clip.sweep.interrupts import Interrupts
from so_clip.sweep.planned import planned_jobs
from so_clip.system import atomic
from so_clip.system.commands import as_typed, command
from so_clip.system.locks import LOCK_FILE, FolderLock, lock_folder, unlock
from so_clip.system.machine import ray_resources

LOST = "its process ended before the run, or the disk was too full to record how the run ended"
# How long to wait for the worker processes of a launcher that raised an error.
PATIENCE_SECONDS = 3.0
# The states of jobs in the summary, in order.
_STATES = {
    "done": "done",
    "skipped": "skipped (finished before)",
    "busy": "busy (another process is running this configuration)",
    "failed": "failed",
    "lost": "lost (its process ended)",
    "interrupted": "interrupted",
    "still running": "still running (python -m so_clip status RESULTS_DIR shows them)",
    "not started": "not started",
}


class Sweep:
    """The sweep that this process started.

    Args:
        folder: the sweep's folder.
        planned: the overrides of each job; empty if the sweeper chooses jobs as it goes.
        new_folders: parents of the folder that did not exist before, innermost first.

    Attributes:
        finished: the number of jobs with runs that were finished before. They are the first ones of
            `planned`.
        launched_at: when the launcher got the other jobs, in seconds since 1970.
    """

    def __init__(
        self, folder: Path, planned: list[list[str]], new_folders: Sequence[Path] = ()
    ) -> None:
        self.folder, self.planned, self.new_folders = folder, planned, new_folders
        self.finished = 0
        self.launched_at: float | None = None
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self.job_files = JobFiles(folder)
        self.interrupts = Interrupts()
        self._lock: FolderLock | None = None

    def write_plan(self) -> None:
        """Write sweep.json, for the workers of launchers and for `status`."""
        values = {
            "command": [sys.argv[0], *as_typed(sys.argv[1:])],
            "started_at": self._started_at,
            "finished": self.finished,
            "launched_at": self.launched_at,
            "jobs": self.planned,
        }
        atomic.write_json(self.folder / SWEEP_FILE, values)

    def lock(self) -> None:
        """Hold the folder's lock, so other processes see that the sweep is running."""
        with suppress(OSError):
            self._lock = lock_folder(self.folder)

    def unlock(self) -> None:
        """Give the lock back, if this process still holds it."""
        lock, self._lock = self._lock, None
        unlock(lock)

    def remove(self) -> None:
        """Remove the files of the sweep, and the folders that were made for it, if empty."""
        self.unlock()
        with suppress(OSError):
            for name in (SWEEP_FILE, "multirun.yaml"):
                (self.folder / name).unlink(missing_ok=True)
            for file in (self.folder / JOBS_DIR).glob("*.json"):
                file.unlink()
            for folder in (*self.folder.iterdir(), self.folder, *self.new_folders):
                folder.rmdir()


class RecordSweep(Callback):
    """Writes sweep.json before Hydra composes the first run of a sweep; see conf/config.yaml."""

    # Global state, because Hydra constructs this callback itself and returns nothing of it to the
    # caller of its entry point. `on_multirun_start` sets the sweep, `closing` removes it.
    sweep: ClassVar[Sweep | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Hydra calls this, and turns exceptions into warnings except for SystemExit."""
        try:
            with resolving():
                check_writable(path("results_dir", config.results_dir))
                _start(config)
        except Exception as error:
            raise SystemExit(report(error)) from error


def job_files(sweep_dir: Path) -> JobFiles:
    """Return the job files of the running sweep, in its own process or in a worker process."""
    sweep = RecordSweep.sweep
    return JobFiles(sweep_dir) if sweep is None else sweep.job_files


def _start(config: DictConfig) -> None:
    folder = Path(config.hydra.sweep.dir)
    # os.path.exists, unlike Path.exists, never raises an error.
    new_folders = [parent for parent in folder.parents if not os.path.exists(parent)]  # noqa: PTH110
    sweep = RecordSweep.sweep = Sweep(folder, planned_jobs(config), new_folders)
    sweep.interrupts.watch()
    note.print_once(True)
    _hand_out_single_runs(config)
    _hand_out_gpus(config)
    sweep.write_plan()
    sweep.lock()
    _remove_leftovers(config)


def _remove_leftovers(config: DictConfig) -> None:
    """Remove the half-written files and the unlocked lock files of sweeps that were killed."""
    sweeps = Path(config.hydra.sweep.dir).parent
    cache_dir = None
    with suppress(InputError):  # each run reports this error
        cache_dir = optional_path("evaluation.cache_dir", config.evaluation.get("cache_dir"))
    for folder in filter(None, (sweeps.parent, cache_dir)):
        atomic.remove_dead(folder)
    for file in sweeps.glob(f"*/{SWEEP_FILE}"):
        atomic.remove_dead(file.parent)
        atomic.remove_dead(file.parent / JOBS_DIR)
        if (file.parent / LOCK_FILE).exists():
            with suppress(OSError):  # BlockingIOError: the sweep is running
                unlock(lock_folder(file.parent))


def _hand_out_single_runs(config: DictConfig) -> None:
    """Let joblib give each worker one run at a time.

    By default joblib sizes batches by duration. After some runs that were skipped in an instant,
    one worker would get dozens of long runs and the others none.
    """
    if config.hydra.launcher.get("batch_size") == "auto":
        with read_write(config):
            config.hydra.launcher.batch_size = "1"


def _hand_out_gpus(config: DictConfig) -> None:
    """Let a Ray of this machine start one run for each GPU."""
    launcher = config.hydra.launcher
    if not str(launcher.get("_target_")).endswith(".RayLauncher"):
        return
    import torch  # late: a sweep whose runs are all finished needs no torch

    resources = ray_resources(launcher, torch.cuda.device_count())
    if resources:
        with read_write(config), open_dict(config):
            config.hydra.launcher.ray.remote = resources


@contextmanager
def closing(show_runs: Callable[[Sequence[Path]], None]) -> Iterator[None]:
    """End a sweep, if the block runs one, with its table, its summary and its exit code.

    Hydra makes the sweep's folder before it checks the first run. If no run starts, the folder is
    removed.

    Args:
        show_runs: prints a table of the runs in the given folders.
    """
    problem: BaseException | None = None
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        problem = error
    sweep, RecordSweep.sweep = RecordSweep.sweep, None
    note.print_once(False)
    if sweep is not None:
        try:
            code = _close(sweep, problem, show_runs)
        finally:
            sweep.unlock()
            sweep.interrupts.unwatch()
        if code:
            raise SystemExit(code) from problem
        if code is not None:
            return
    if problem is not None:
        raise problem


def _close(
    sweep: Sweep,
    problem: BaseException | None,
    show_runs: Callable[[Sequence[Path]], None] = lambda folders: None,
) -> int | None:
    """Print the summary and return the exit code; None if no job started and `problem` says why."""
    jobs = sweep.job_files.read()
    states = _states(sweep, jobs, problem)
    # Without a problem, planned jobs that recorded nothing are an error: the disk may be full.
    if not jobs and (problem is not None or not sweep.planned):
        sweep.remove()
        return None
    if jobs and all(job.exit_code == BAD_INPUT and not job.run_dir for job in jobs.values()):
        sweep.remove()
    code = exit_code_of(states, jobs, problem)
    scored = [job for job in jobs.values() if job.accuracy_percent is not None and job.run_dir]
    if problem is not None:
        report(problem)
    elif scored:
        show_runs([*dict.fromkeys(Path(str(job.run_dir)) for job in scored)])
    show(f"\n{summary(sweep.planned, jobs, states)}")
    if code or "busy" in states.values():
        given = as_typed(sys.argv[1:])
        again = [argument for argument in given if not argument.startswith("force=")]
        show(f"The same command runs only what is missing:\n  {command(*again)}")
    return code


def _states(sweep: Sweep, jobs: Mapping[int, Job], problem: BaseException | None) -> dict[int, str]:
    """Return how each job ended, by its number."""
    states = {number: job.state for number, job in jobs.items()}
    unfinished = [number for number, state in states.items() if state == RUNNING]
    # A launcher that returned has waited for its jobs, although the processes of its pool may live
    # on. After an error, jobs in other processes may still be running.
    alive = [
        number for number in unfinished if problem is not None and jobs[number].pid != os.getpid()
    ]
    deadline = time.monotonic() + PATIENCE_SECONDS
    while alive and time.monotonic() < deadline:
        alive = [number for number in alive if may_be_alive(jobs[number])]
        time.sleep(0.1 if alive else 0)
    ended = "interrupted" if isinstance(problem, KeyboardInterrupt) else "lost"
    for number in unfinished:
        states[number] = "still running" if number in alive else ended
    for number in range(len(sweep.planned)):
        states.setdefault(number, "not started")
    return states


def exit_code_of(
    states: Mapping[int, str], jobs: Mapping[int, Job], problem: BaseException | None
) -> int:
    """Return the exit code of a sweep.

    Returns:
        0: no job failed. 2: all failures were bad input. 130 or 143: the sweep was interrupted or
        terminated. 1: all other cases.
    """
    if isinstance(problem, KeyboardInterrupt):
        return exit_code(problem)
    codes = {jobs[number].exit_code for number, state in states.items() if state == FAILED_JOB}
    if problem is not None or {"lost", "not started", "still running"} & set(states.values()):
        codes.add(FAILED)
    if not codes:
        return 0
    return BAD_INPUT if codes == {BAD_INPUT} else FAILED


def summary(
    planned: Sequence[Sequence[str]], jobs: Mapping[int, Job], states: Mapping[int, str]
) -> str:
    """Return the counts of jobs by state, and the reason and command of each failed or lost job."""
    counts = Counter(states.values())
    parts = [f"{counts[state]} {text}" for state, text in _STATES.items() if counts[state]]
    runs = f"{len(states)} run{'' if len(states) == 1 else 's'}"
    lines = [f"sweep of {runs}: {', '.join(parts)}"]
    for number, state in sorted(states.items()):
        if state not in ("failed", "lost"):
            continue
        job = jobs[number]
        lines.append(f"{state}: {job.message or LOST}")
        lines.append(f"  {command(*(job.overrides or planned[number]))}")
    return "\n".join(lines)
