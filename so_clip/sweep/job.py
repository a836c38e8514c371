"""One composed run: by itself, or as a job of a sweep, in whichever process that has put it."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from so_clip.config.settings import Settings, from_config
from so_clip.data.run_data import gather
from so_clip.errors import InputError, RunBusy, exit_code, message_of, report
from so_clip.fingerprint import remembered_run
from so_clip.results.job_files import BUSY, DONE, FAILED, SKIPPED, Job, read_plan
from so_clip.results.run_folder import RunFolder, check_writable
from so_clip.sweep.callback import flags_of, job_files
from so_clip.system.machine import concurrent_runs, shares_gpus

if TYPE_CHECKING:
    from so_clip.run import Result

FINISHED = "finished before: skipped. force=true repeats it."


def task(composed: DictConfig) -> float:
    """Do one composed run and return its accuracy in percent; nan for a job of a sweep that failed.

    By itself, a failure leaves as SystemExit, which Hydra passes on without a word. In a sweep it
    is told in the job's file, and the sweep goes on.
    """
    try:
        return _task(composed)
    except Exception as error:  # no matter of the command line's, whatever its kind
        raise SystemExit(report(error)) from error


def _task(composed: DictConfig) -> float:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from so_clip.config.compose import register

    register()  # anew in each process of a parallel sweep
    hydra = HydraConfig.get()
    overrides = [*flags_of(hydra), *hydra.overrides.task]
    if hydra.mode == RunMode.MULTIRUN:
        sweep_dir = Path(hydra.runtime.output_dir).parent
        plan = read_plan(sweep_dir)
        jobs = len(plan.jobs) if plan else 0
        at_once = concurrent_runs(hydra.launcher, jobs)
        accuracy_percent, told = _job(composed, overrides, sweep_dir, hydra.job.num, at_once)
        if told:
            of = f" of {jobs}" if jobs else ""
            print(f"[{hydra.job.num + 1}{of}] {told}", flush=True)
        return accuracy_percent
    settings = from_config(composed)
    result = _finished(settings) or _do(settings, overrides)
    if result is None:  # one of several processes, and not the one that tells
        return float("nan")
    print(f"\n{FINISHED}\n\n{result.table}" if result.skipped else f"\n{result.table}")
    return result.metrics["accuracy_percent"]


def _job(
    composed: DictConfig, overrides: Sequence[str], sweep_dir: Path, number: int, at_once: int
) -> tuple[float, str]:
    """Do one run of a sweep; return its accuracy, and what to print of it if it did not fail."""
    files, job = job_files(sweep_dir), Job(overrides)
    settings = None
    try:
        settings = from_config(composed, at_once)
        result = _finished(settings)
        if result is None:
            files.write(number, job)
            gpu_job = number if shares_gpus(settings.device, at_once) else None
            result = _do(settings, overrides, True, gpu_job)
        assert result is not None, "a job of a sweep has a process of its own"
        accuracy_percent = float(result.metrics["accuracy_percent"])
    except Exception as error:
        job.state = BUSY if isinstance(error, RunBusy) else FAILED
        job.message, job.exit_code = message_of(error), exit_code(error)
        job.run_dir = _folder(settings)
        report(error)
        files.write(number, job)
        return float("nan"), ""
    job.state = SKIPPED if result.skipped else DONE
    job.run_dir, job.accuracy_percent = str(result.folder), accuracy_percent
    files.write(number, job)
    if result.skipped:
        return accuracy_percent, f"{result.folder}: {FINISHED}"
    # A line a job where the output goes to a file, whose reader looks for one among thousands.
    return accuracy_percent, f"\n{result.table}" if sys.stdout.isatty() else result.line


def _finished(settings: Settings) -> "Result | None":
    """Return a finished run's result at once, if this process has seen its lists and weights."""
    known = None if settings.force else remembered_run(settings)
    if known is None:
        return None
    from so_clip.run import Result

    folder, fingerprint = known
    metrics = RunFolder(folder).finished(fingerprint)
    return None if metrics is None else Result(folder, metrics, skipped=True)


def _do(
    settings: Settings,
    overrides: Sequence[str],
    keep_refusals: bool = False,
    gpu_job: int | None = None,
) -> "Result | None":
    check_writable(settings.results_dir)
    data = gather(**settings.data)
    # Only now, since torch takes seconds to import and most bad input is refused without it.
    from so_clip.run import follow, run
    from so_clip.runtime.device import cpu_threads, one_gpu
    from so_clip.runtime.distributed import process_group

    with cpu_threads(settings.threads), one_gpu(gpu_job), process_group(settings.device) as ranks:
        if ranks.first:
            return run(settings, data, overrides, keep_refusals, ranks)
        follow(settings, data, ranks)
        return None


def _folder(settings: Settings | None) -> str | None:
    """Return a failed run's folder, if it got that far."""
    if settings is not None:
        with suppress(InputError):
            known = remembered_run(settings)
            return str(known[0]) if known and known[0].is_dir() else None
    return None
