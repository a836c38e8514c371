"""A run of sampled tasks, top to bottom: draw, encode the test images, each task, record."""

import gc
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from tqdm import tqdm

from so_clip.build import base_of, load
from so_clip.checkpoint import made_by
from so_clip.clip.backbone import Backbone
from so_clip.config.resolve import resolved
from so_clip.config.settings import Settings
from so_clip.data.episodes.sampler import EpisodeDraw
from so_clip.data.images import require_images
from so_clip.data.run_data import Data
from so_clip.fingerprint import KnownRuns
from so_clip.metrics import write_provenance
from so_clip.results.interval import check_intervals, half_width
from so_clip.results.run_files import TASKS_TABLE
from so_clip.results.run_folder import RunFolder
from so_clip.results.scores import ADAPTED, NOT_ADAPTED, ZERO_SHOT
from so_clip.run import Result, summary, unless_finished
from so_clip.runtime.device import pick_device, threads_of
from so_clip.tasks.draws import draw_tasks, draws_json, draws_sha256
from so_clip.tasks.finished import COLUMNS, FinishedTasks, TaskResult
from so_clip.tasks.metrics import tasks_metrics
from so_clip.tasks.work import Features, Loaded, do_task

# The stop reason of a run of tasks that adapts.
ALL_TASKS = "all_tasks"


def run_tasks(
    settings: Settings,
    data: Data,
    *,
    overrides: Sequence[str] = (),
    keep_refusals: bool = False,
    known: KnownRuns | None = None,
    backbone: Backbone | None = None,
) -> Result:
    """Do all tasks of one run and write its folder, unless the run is finished.

    Bad input is found before the folder is created.

    Args:
        settings, data: of the run.
        overrides, keep_refusals: see RunFolder.claimed.
        known: hashes from earlier runs of this process. This run adds its own.
        backbone: that of the settings, loaded already. It does not change. None: it is loaded.

    Raises:
        InputError: a value or file of the user cannot be used.
        RunBusy: another process is running this configuration.
        TrainingDiverged: a loss is not finite. Finished tasks are kept.
    """
    check_intervals()
    settings = resolved(settings)
    known = known or KnownRuns()
    tasks = draw_tasks(settings, data.splits)
    drawn = [example for task in tasks for example in (*task.few_shot, *task.queries)]
    require_images(data.images, drawn, data.card)
    base = known.base(settings)
    if base is None:
        backbone = backbone or load(settings.backbone, settings.data.seed)
        base = base_of(settings.backbone, backbone, backbone.weights_sha256)
    weights_sha256 = base.weights_sha256

    def work(settings: Settings, folder: RunFolder, fingerprint: str) -> dict[str, Any]:
        made = backbone or load(settings.backbone, settings.data.seed)
        return _do(Loaded(settings, data, made, weights_sha256), tasks, folder, fingerprint)

    return unless_finished(
        settings,
        known.remember(settings, data, base),
        base,
        work,
        overrides=overrides,
        keep_refusals=keep_refusals,
    )


def _do(
    loaded: Loaded, tasks: Sequence[EpisodeDraw], folder: RunFolder, fingerprint: str
) -> dict[str, Any]:
    """Do the tasks that are not finished, and return the content of metrics.json."""
    settings, data = loaded.settings, loaded.data
    progress = folder.watched(len(tasks), unit="task")
    features = loaded.features(tasks, progress)
    folder.start(settings.record(), draws_json(settings, tasks, whole=False))
    device = pick_device(settings.placement.device)
    finished = FinishedTasks(
        folder.path,
        made_by(fingerprint, threads_of(device)),
        keeps=settings.placement.checkpoint_seconds > 0,
    )
    # No other task has a higher peak in evaluation.
    largest = max(tasks, key=lambda task: (len(task.labels), len(task.queries)))
    progress.train()
    progress.after_step(len(finished.results), None)
    left = [task for task in tasks if task.number not in finished.results]
    for task in tqdm(
        left,
        "tasks",
        total=len(tasks),
        initial=len(tasks) - len(left),
        unit="task",
        dynamic_ncols=True,
        disable=None,
    ):
        finished.add(do_task(loaded, features, task, progress, task is largest))
        gc.collect()  # the task's model and its optimizer refer to each other
        progress.after_step(len(finished.results), None)
    progress.evaluate()
    results = [finished.results[task.number] for task in tasks]
    folder.write_rows(TASKS_TABLE, COLUMNS, [result.row for result in results])
    write_provenance(
        folder,
        data,
        loaded.backbone,
        device=device,
        weights_sha256=loaded.weights_sha256,
        fingerprint=fingerprint,
        overrides=folder.overrides,
    )
    metrics = tasks_metrics(
        settings,
        data,
        accuracies=accuracies(results),
        draws_sha256=draws_sha256(tasks),
        fingerprint=fingerprint,
        counts=_counts(results, features, settings),
        memory=max((result.memory for result in results), key=_peak),
        device=device,
    )
    folder.finish(metrics, summary(metrics, folder.path))
    return metrics


def accuracies(results: Sequence[TaskResult]) -> dict[str, float | None]:
    """Return the mean accuracies over tasks and their difference, with 95 % intervals.

    The difference is paired: its interval is that of the tasks' differences. Without a text tower
    there is no zero-shot accuracy, and no difference.
    """
    adapted = [result.accuracy_percent for result in results]
    zero_shot = [
        result.zero_shot_accuracy_percent
        for result in results
        if result.zero_shot_accuracy_percent is not None
    ]
    difference = [after - before for after, before in zip(adapted, zero_shot, strict=False)]
    values = {
        f"{ZERO_SHOT}accuracy": zero_shot,
        f"{ADAPTED}accuracy": adapted,
        "difference": difference,
    }
    found: dict[str, float | None] = {}
    for name, numbers in values.items():
        found[f"{name}_percent"] = fmean(numbers) if numbers else None
        found[f"{name}_interval_percent"] = half_width(numbers) if numbers else None
    return found


def _counts(
    results: Sequence[TaskResult], features: Features, settings: Settings
) -> dict[str, Any]:
    return {
        "test_images": len(features.rows),
        "evaluate_seconds": features.seconds + sum(result.evaluate_seconds for result in results),
        "features_from_cache": features.from_cache,
        "train_seconds": sum(result.train_seconds for result in results),
        "steps": sum(result.steps for result in results),
        "stop_reason": ALL_TASKS if settings.adapts else NOT_ADAPTED,
        "trainable_parameters": max(result.trainable_parameters for result in results),
    }


def _peak(memory: Mapping[str, float]) -> float:
    return memory.get("peak_memory_mib", 0.0)
