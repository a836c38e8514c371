"""The Hydra task function: one run, alone or as one job of a sweep."""

import gc
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from so_clip.config.early_checks import check_packages, check_places, check_smat_file
from so_clip.config.sentence_checks import check_place, check_text_packages
from so_clip.config.sentence_parse import settings_of_kind
from so_clip.config.sentence_settings import SentenceSettings
from so_clip.config.settings import Settings
from so_clip.data.run_data import gather
from so_clip.data.sentences.read import gather_sentences
from so_clip.errors import InputError, RunBusy, exit_code, message_of, note, report, show
from so_clip.results.job_files import (
    BUSY,
    DONE,
    FAILED,
    SKIPPED,
    Job,
    SweepPlan,
    read_plan,
)
from so_clip.results.job_names import JobNames
from so_clip.results.progress import duration
from so_clip.sweep.callback import job_files
from so_clip.sweep.finished import (
    KNOWN_ENCODERS,
    KNOWN_RUNS,
    AnySettings,
    finished,
    known_folder,
)
from so_clip.sweep.planned import as_given, flags_of
from so_clip.system.machine import concurrent_runs, shares_gpus

if TYPE_CHECKING:
    from so_clip.run import Result

FINISHED = "finished before: skipped. force=true repeats it."


def task(composed: DictConfig) -> float:
    """Do one composed run and return its accuracy in percent; nan for a failed job of a sweep.

    A single run that fails raises SystemExit, because Hydra passes it on without a message. In a
    sweep the job's file records the failure, and the sweep continues.
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
        plan, names = _plan(sweep_dir)
        concurrent = concurrent_runs(hydra.launcher, len(plan.jobs))
        number = hydra.job.num
        name = names.name(number, overrides)
        note.print_once(True)
        show(f"{name} ...")
        accuracy_percent, text = _job(composed, overrides, sweep_dir, number, concurrent)
        # A run's model and its optimizer refer to each other, and the next run needs the memory.
        gc.collect()
        ended = number - plan.finished + 2 - concurrent  # the others have begun with later jobs
        left = plan.seconds_left(ended, time.time())
        text += f"; {duration(left)} left for the sweep" if left is not None else ""
        show(f"{name}: {text}")
        return accuracy_percent
    settings = settings_of_kind(composed)
    result = finished(settings) or _run(settings, overrides)
    if result is None:  # one of several processes, and not the first
        return float("nan")
    show(f"\n{FINISHED}\n\n{result.table}" if result.skipped else f"\n{result.table}")
    return result.metrics["accuracy_percent"]


@cache
def _plan(sweep_dir: Path) -> tuple[SweepPlan, JobNames]:
    """Return the plan of a sweep, which no longer changes, and the names of its jobs."""
    plan = read_plan(sweep_dir) or SweepPlan([], [])
    return plan, JobNames(plan.jobs)


def _job(
    composed: DictConfig, overrides: Sequence[str], sweep_dir: Path, number: int, concurrent: int
) -> tuple[float, str]:
    """Do one run of a sweep; return its accuracy, and the line to print."""
    files, job = job_files(sweep_dir), Job(list(overrides))
    settings = None
    try:
        settings = settings_of_kind(composed, concurrent)
        result = finished(settings)
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
        return float("nan"), job.state
    job.state = SKIPPED if result.skipped else DONE
    job.run_dir, job.accuracy_percent = str(result.folder), accuracy_percent
    files.write(number, job)
    return accuracy_percent, FINISHED if result.skipped else result.line


def _run(
    settings: AnySettings,
    overrides: Sequence[str],
    *,
    keep_refusals: bool = False,
    gpu_job: int | None = None,
) -> "Result | None":
    check_packages(settings.method)
    of_run: dict[str, Any] = {"overrides": overrides, "keep_refusals": keep_refusals}
    if isinstance(settings, SentenceSettings):
        return _run_on_sentences(settings, gpu_job, of_run)
    return _run_on_images(settings, gpu_job, {**of_run, "known": KNOWN_RUNS})


def _run_on_images(
    settings: Settings, gpu_job: int | None, of_run: dict[str, Any]
) -> "Result | None":
    check_places(settings)
    check_smat_file(settings.method)
    evaluation = settings.evaluation
    data = gather(settings.data, cache_dir=evaluation.cache_dir, workers=evaluation.workers)
    # torch takes seconds to import, and most bad input is refused without it.
    from so_clip.run import follow, run
    from so_clip.runtime.device import cpu_threads, one_gpu
    from so_clip.runtime.distributed import process_group
    from so_clip.tasks.run import run_tasks

    placement = settings.placement
    with (
        cpu_threads(placement.threads),
        one_gpu(gpu_job),
        process_group(placement.device, placement.rank_timeout_seconds) as ranks,
    ):
        if settings.data.tasks:
            return run_tasks(settings, data, **of_run)
        if ranks.first:
            return run(settings, data, ranks=ranks, **of_run)
        follow(settings, data, ranks)
        return None


def _run_on_sentences(
    settings: SentenceSettings, gpu_job: int | None, of_run: dict[str, Any]
) -> "Result":
    check_text_packages()
    check_place(settings)
    data = gather_sentences(settings.data)
    # torch takes seconds to import, and most bad input is refused without it.
    from so_clip.runtime.device import cpu_threads, one_gpu
    from so_clip.sentences.run import run_sentences

    with cpu_threads(settings.placement.threads), one_gpu(gpu_job):
        return run_sentences(settings, data, known=KNOWN_ENCODERS, **of_run)


def _existing_folder(settings: AnySettings | None) -> str | None:
    """Return a failed run's folder, if it got that far."""
    if settings is not None:
        with suppress(InputError):
            found = known_folder(settings)
            return str(found[0]) if found and found[0].is_dir() else None
    return None
