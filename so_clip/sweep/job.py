"""The Hydra task function: one run, alone or as one job of a sweep."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from so_clip.clip.weights_file import check_backbone
from so_clip.config.parse import from_config
from so_clip.config.settings import Settings
from so_clip.data.run_data import gather
from so_clip.errors import InputError, RunBusy, exit_code, message_of, report
from so_clip.fingerprint import KnownRuns
from so_clip.results.job_files import BUSY, DONE, FAILED, SKIPPED, Job, read_plan
from so_clip.results.run_folder import RunFolder, check_writable
from so_clip.sweep.callback import as_given, flags_of, job_files
from so_clip.system.machine import concurrent_runs, shares_gpus

if TYPE_CHECKING:
    from so_clip.run import Result

FINISHED = "finished before: skipped. force=true repeats it."

# One for each process: Hydra calls the task function anew for every job of a sweep, and a launcher
# may hand several jobs to one process.
_KNOWN_RUNS = KnownRuns()


def task(composed: DictConfig) -> float:
    """Do one composed run and return its accuracy in percent; nan for a failed job of a sweep.

    A single run that fails raises SystemExit, which Hydra passes on without a message. In a sweep
    the job's file records the failure, and the sweep goes on.
    """
    try:
        return _task(composed)
    except Exception as error:
        raise SystemExit(report(error)) from error


def _task(composed: DictConfig) -> float:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from so_clip.config.compose import register

    register()  # each process of a parallel sweep needs it
    hydra = HydraConfig.get()
    overrides = [*flags_of(hydra), *as_given(hydra.overrides.task)]
    if hydra.mode == RunMode.MULTIRUN:
        sweep_dir = Path(hydra.runtime.output_dir).parent
        plan = read_plan(sweep_dir)
        jobs = len(plan.jobs) if plan else 0
        concurrent = concurrent_runs(hydra.launcher, jobs)
        accuracy_percent, text = _job(composed, overrides, sweep_dir, hydra.job.num, concurrent)
        if text:
            total = f" of {jobs}" if jobs else ""
            print(f"[{hydra.job.num + 1}{total}] {text}", flush=True)
        return accuracy_percent
    settings = from_config(composed)
    result = _finished(settings) or _run(settings, overrides)
    if result is None:  # one of several processes, and not the first
        return float("nan")
    print(f"\n{FINISHED}\n\n{result.table}" if result.skipped else f"\n{result.table}")
    return result.metrics["accuracy_percent"]


def _job(
    composed: DictConfig, overrides: Sequence[str], sweep_dir: Path, number: int, concurrent: int
) -> tuple[float, str]:
    """Do one run of a sweep; return its accuracy, and the text to print if it did not fail."""
    files, job = job_files(sweep_dir), Job(list(overrides))
    settings = None
    try:
        settings = from_config(composed, concurrent)
        result = _finished(settings)
        if result is None:
            files.write(number, job)
            gpu_job = number if shares_gpus(settings.placement.device, concurrent) else None
            result = _run(settings, overrides, keep_refusals=True, gpu_job=gpu_job)
        assert result is not None, "a job of a sweep has a process of its own"
        accuracy_percent = float(result.metrics["accuracy_percent"])
    except Exception as error:
        job.state = BUSY if isinstance(error, RunBusy) else FAILED
        job.message, job.exit_code = message_of(error), exit_code(error)
        job.run_dir = _existing_folder(settings)
        report(error)
        files.write(number, job)
        return float("nan"), ""
    job.state = SKIPPED if result.skipped else DONE
    job.run_dir, job.accuracy_percent = str(result.folder), accuracy_percent
    files.write(number, job)
    if result.skipped:
        return accuracy_percent, f"{result.folder}: {FINISHED}"
    # A log file gets one line a job, so that a reader finds one among thousands.
    return accuracy_percent, f"\n{result.table}" if sys.stdout.isatty() else result.line


def _finished(settings: Settings) -> "Result | None":
    """Return a finished run's result if this process knows its lists and weights already."""
    found = None if settings.placement.force else _KNOWN_RUNS.find(settings)
    if found is None:
        return None
    from so_clip.run import Result

    folder, fingerprint = found
    metrics = RunFolder(folder).finished(fingerprint)
    return None if metrics is None else Result(folder, metrics, skipped=True)


def _run(
    settings: Settings,
    overrides: Sequence[str],
    *,
    keep_refusals: bool = False,
    gpu_job: int | None = None,
) -> "Result | None":
    check_writable(settings.placement.results_dir)
    check_backbone(settings.backbone.architecture, settings.backbone.checkpoint)
    evaluation = settings.evaluation
    data = gather(settings.data, cache_dir=evaluation.cache_dir, workers=evaluation.workers)
    # torch takes seconds to import, and most bad input is refused without it.
    from so_clip.run import follow, run
    from so_clip.runtime.device import cpu_threads, one_gpu
    from so_clip.runtime.distributed import process_group

    placement = settings.placement
    with (
        cpu_threads(placement.threads),
        one_gpu(gpu_job),
        process_group(placement.device) as ranks,
    ):
        if ranks.first:
            return run(
                settings,
                data,
                overrides=overrides,
                keep_refusals=keep_refusals,
                ranks=ranks,
                known=_KNOWN_RUNS,
            )
        follow(settings, data, ranks)
        return None


def _existing_folder(settings: Settings | None) -> str | None:
    """Return a failed run's folder, if it got that far."""
    if settings is not None:
        with suppress(InputError):
            found = _KNOWN_RUNS.find(settings)
            return str(found[0]) if found and found[0].is_dir() else None
    return None
