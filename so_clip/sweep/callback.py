"""A sweep from its start to its closing summary, whichever of Hydra's launchers does its runs."""

import math
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, read_write

from so_clip.checks import optional_path, path
from so_clip.config.compose import CONFIG_NAME
from so_clip.errors import BAD_INPUT, FAILED, InputError, exit_code, report
from so_clip.results.job_files import FAILED as FAILED_JOB
from so_clip.results.job_files import JOBS_DIR, RUNNING, SWEEP_FILE, Job, may_be_alive, read_jobs
from so_clip.results.run_folder import check_writable
from so_clip.sweep import interrupts
from so_clip.system import atomic
from so_clip.system.locks import LOCK_FILE, FolderLock, lock_folder, unlock
from so_clip.system.paths import CONF_DIR

MAX_JOBS = 100_000
LOST = "its process ended before the run did, or had no room on the disk to say how the run ended"
# So long the processes of a launcher that broke have to end.
PATIENCE_SECONDS = 3.0
_MEANINGS = {
    "done": "done",
    "skipped": "skipped (finished before)",
    "busy": "busy (another process is doing it)",
    "failed": "failed",
    "lost": "lost (its process ended)",
    "interrupted": "interrupted",
    "under way": "under way still (python -m so_clip status RESULTS_DIR tells)",
    "not begun": "not begun",
}


def flags_of(hydra: Any) -> list[str]:
    """Return the flags that led a run to a configuration of its user's own, for who repeats it.

    Args:
        hydra: Hydra's own part of a composed configuration.
    """
    paths = {source.provider: source.path for source in hydra.runtime.config_sources}
    flags = []
    if "main" in paths and Path(paths["main"]) != CONF_DIR:
        flags.append(f"--config-path={paths['main']}")
    if "command-line" in paths:
        flags.append(f"--config-dir={paths['command-line']}")
    if hydra.job.config_name not in (None, CONFIG_NAME):
        flags.append(f"--config-name={hydra.job.config_name}")
    return flags


@dataclass
class Sweep:
    """What the process that started a sweep knows of it.

    Attributes:
        folder: the sweep's own.
        new: the folders around it that were not there yet, innermost first.
        jobs: the overrides of each, as far as they are known before.
        lock: held to its end, so that others see that it is at work.
    """

    folder: Path
    new: list[Path]
    jobs: list[list[str]]
    lock: FolderLock | None = None

    def unlock(self) -> None:
        """Give the lock back, if it is held still."""
        lock, self.lock = self.lock, None
        unlock(lock)


_started: list[Sweep] = []


class RecordSweep(Callback):
    """Writes sweep.json before the first run of a sweep is composed; named in conf/config.yaml."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra, which turns exceptions into warnings, but lets SystemExit pass."""
        try:
            check_writable(path("results_dir", config.results_dir))
            _start(config)
        except Exception as error:
            raise SystemExit(report(error)) from error


def _start(config: DictConfig) -> None:
    folder = Path(config.hydra.sweep.dir)
    # os.path.exists, unlike Path.exists, never raises.
    new = [each for each in folder.parents if not os.path.exists(each)]  # noqa: PTH110
    sweep = Sweep(folder, new, _split(config))
    _started.append(sweep)
    interrupts.watch()
    _one_by_one(config)
    values = {
        "command": sys.argv,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "jobs": sweep.jobs,
    }
    atomic.write_json(folder / SWEEP_FILE, values)
    with suppress(OSError):
        sweep.lock = lock_folder(folder)
    _remove_rests(config)


def _remove_rests(config: DictConfig) -> None:
    """Remove what sweeps left that were killed: files half written, and locks that nobody holds."""
    sweeps = Path(config.hydra.sweep.dir).parent
    kept_in = None
    with suppress(InputError):  # of which each run tells
        kept_in = optional_path("evaluation.cache_dir", config.evaluation.cache_dir)
    for folder in (sweeps.parent, *([kept_in] if kept_in else [])):
        atomic.remove_dead(folder)
    for file in sweeps.glob(f"*/{SWEEP_FILE}"):
        atomic.remove_dead(file.parent)
        atomic.remove_dead(file.parent / JOBS_DIR)
        if (file.parent / LOCK_FILE).exists():
            with suppress(OSError):  # BlockingIOError: it is at work
                unlock(lock_folder(file.parent))


def _one_by_one(config: DictConfig) -> None:
    """Have joblib hand out single runs.

    Left to itself it goes by how long they take: after some that were finished before, and took an
    instant, one worker would get long ones by the dozen, and the others none.
    """
    if config.hydra.launcher.get("batch_size") == "auto":
        with read_write(config):
            config.hydra.launcher.batch_size = "1"


def _split(config: DictConfig) -> list[list[str]]:
    """Return the overrides of each job, as Hydra's own sweeper splits them, and flags before them.

    Nothing for another sweeper, which chooses as it goes, or where they cannot be split, of which
    the sweeper will tell.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    sweeper = config.hydra.sweeper
    if not str(sweeper.get("_target_")).endswith(".BasicSweeper"):
        return []
    params = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    with suppress(HydraException):
        overrides = parser.parse_overrides([*params, *config.hydra.overrides.task])
        _check_size(overrides)
        jobs = BasicSweeper.split_arguments(overrides, None)[0]
        return [[*flags_of(config.hydra), *job] for job in jobs]
    return []


def _check_size(overrides: Sequence[Override]) -> None:
    """Refuse sweeps that nobody means, before all their jobs are listed."""
    counts = {override.get_key_element(): _count(override) for override in overrides}
    jobs = math.prod(counts.values())
    if jobs > MAX_JOBS:
        largest = max(counts, key=lambda key: counts[key])
        raise InputError(
            f"{largest}: {counts[largest]} values, and so a sweep of {jobs} runs. A sweep has "
            f"{MAX_JOBS} at the most: give fewer values."
        )


def _count(override: Override) -> int:
    """Return how many values an option has, without listing a range's."""
    value = override.value()
    if isinstance(value, RangeSweep):
        steps = ((value.stop or 0) - (value.start or 0)) / (value.step or 1)
        return max(0, math.ceil(steps)) if math.isfinite(steps) else MAX_JOBS + 1
    return len(value.list) if isinstance(value, ChoiceSweep) else 1


@contextmanager
def closing() -> Iterator[None]:
    """Let a sweep, if there is one, end with its summary and the exit code that follows from it.

    Hydra makes a folder for a sweep before its first run is checked. A sweep of which nothing came
    takes it away again.
    """
    problem: BaseException | None = None
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        problem = error
    sweeps, _started[:] = _started[:], []
    for sweep in sweeps:
        try:
            code = _close(sweep, problem)
        finally:
            sweep.unlock()
            interrupts.unwatch()
        if code:
            raise SystemExit(code) from problem
        if code is not None:
            return
    if problem is not None:
        raise problem


def _close(sweep: Sweep, problem: BaseException | None) -> int | None:
    """Print the summary and return the exit code; None where nothing began and it is said why."""
    jobs = read_jobs(sweep.folder)
    states = _states(sweep, jobs, problem)
    if not jobs and (problem is not None or not sweep.jobs):
        _remove(sweep)
        return None
    # No word of any job, and none of why: a disk too full for a word, say.
    if jobs and all(job.exit_code == BAD_INPUT and not job.run_dir for job in jobs.values()):
        _remove(sweep)
    code = exit_code_of(states, jobs, problem)
    if problem is not None:
        report(problem)
    print(f"\n{summary(sweep.jobs, jobs, states)}", flush=True)
    if code or "busy" in states.values():
        again = [each for each in sys.argv[1:] if not each.startswith("force=")]
        command = shlex.join(["python", "-m", "so_clip", *again])
        print(f"The same sweep once more does only what is missing:\n  {command}", flush=True)
    return code


def _states(sweep: Sweep, jobs: Mapping[int, Job], problem: BaseException | None) -> dict[int, str]:
    """Return how each job ended, by its number."""
    states = {number: job.state for number, job in jobs.items()}
    begun = [number for number, state in states.items() if state == RUNNING]
    # A launcher that returned has waited for its jobs; the processes of a pool outlive them.
    waited = problem is None
    alive = [number for number in begun if jobs[number].pid != os.getpid() and not waited]
    until = time.monotonic() + PATIENCE_SECONDS
    while alive and time.monotonic() < until:
        alive = [number for number in alive if may_be_alive(jobs[number])]
        time.sleep(0.1 if alive else 0)
    ended = "interrupted" if isinstance(problem, KeyboardInterrupt) else "lost"
    for number in begun:
        states[number] = "under way" if number in alive else ended
    for number in range(len(sweep.jobs)):
        states.setdefault(number, "not begun")
    return states


def exit_code_of(
    states: Mapping[int, str], jobs: Mapping[int, Job], problem: BaseException | None
) -> int:
    """Return 0 if all is well, 2 if all that failed was bad input, else 1; 130 or 143 if ended."""
    if isinstance(problem, KeyboardInterrupt):
        return exit_code(problem)
    codes = {jobs[number].exit_code for number, state in states.items() if state == FAILED_JOB}
    if problem is not None or {"lost", "not begun", "under way"} & set(states.values()):
        codes.add(FAILED)
    if not codes:
        return 0
    return BAD_INPUT if codes == {BAD_INPUT} else FAILED


def summary(
    planned: Sequence[Sequence[str]], jobs: Mapping[int, Job], states: Mapping[int, str]
) -> str:
    """Return how many jobs ended how, and for each that went wrong why, and the command for it."""
    counts = Counter(states.values())
    parts = [f"{counts[state]} {text}" for state, text in _MEANINGS.items() if counts[state]]
    runs = f"{len(states)} run{'' if len(states) == 1 else 's'}"
    lines = [f"sweep of {runs}: {', '.join(parts)}"]
    for number, state in sorted(states.items()):
        if state not in ("failed", "lost"):
            continue
        job = jobs[number]
        overrides = job.overrides or planned[number]
        lines.append(f"{state}: {job.message or LOST}")
        lines.append(f"  {shlex.join(['python', '-m', 'so_clip', *overrides])}")
    return "\n".join(lines)


def _remove(sweep: Sweep) -> None:
    """Remove what was written of a sweep, and the folders made around it, where empty."""
    sweep.unlock()
    with suppress(OSError):
        for name in (SWEEP_FILE, "multirun.yaml"):
            (sweep.folder / name).unlink(missing_ok=True)
        for file in (sweep.folder / JOBS_DIR).glob("*.json"):
            file.unlink()
        for folder in (*sweep.folder.iterdir(), sweep.folder, *sweep.new):
            folder.rmdir()
