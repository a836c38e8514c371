"""One run, top to bottom: data, backbone, zero-shot, adapt, evaluate, record."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from so_clip import identity
from so_clip.assemble import (
    Model,
    build_evaluators,
    build_model,
    build_optimizer,
    few_shot_batches,
    resolved,
)
from so_clip.curve import Curve
from so_clip.data.batches import TrainBatches
from so_clip.data.gather import Data
from so_clip.device import describe
from so_clip.distributed import ALONE, Ranks
from so_clip.errors import InputError
from so_clip.memory import PeakMemory
from so_clip.metrics import Adaptation, Outcome, run_metrics, summary_rows, write_outcomes
from so_clip.progress import Progress
from so_clip.record import CHECKPOINT_FILE, RunFolder, provenance, summary_table
from so_clip.resume import Checkpoint, ModelState, Stopwatch
from so_clip.settings import Settings
from so_clip.support import FewShotSupport
from so_clip.train import History, TrainingDiverged, train


@dataclass(frozen=True)
class Result:
    """What a run came to: its folder, metrics.json, and whether it was finished before."""

    folder: Path
    metrics: dict[str, Any]
    skipped: bool = False

    @property
    def table(self) -> str:
        """The run's figures as a small table for people."""
        return summary(self.metrics, self.folder)


def run(
    settings: Settings,
    data: Data,
    overrides: Sequence[str] = (),
    keep_refusals: bool = False,
    ranks: Ranks = ALONE,
) -> Result:
    """Do one run, unless it is finished, and leave its folder behind.

    Whatever is wrong with the input is found before the folder is created.

    Args:
        settings, data: of the run.
        overrides, keep_refusals: see RunFolder.claimed.
        ranks: the processes that do this run together. This is the first; the others `follow`.

    Raises:
        InputError: something the user gave cannot be used.
        RunBusy: another process is doing this run.
        TrainingDiverged: a loss is not finite; what was recorded stays in the folder.
    """
    settings = resolved(settings)
    weights_sha256 = identity.remembered_weights(settings)
    model = None
    if weights_sha256 is None:
        model = build_model(settings, data)
        weights_sha256 = model.weights_sha256
    known = identity.contents_sha256(data, settings.template), weights_sha256
    fingerprint = identity.run_fingerprint(settings, *known, ranks.size)
    folder = RunFolder(identity.run_dir(settings, fingerprint))
    with folder.claimed(overrides, keep_refusals):
        metrics = None if settings.force else folder.finished(fingerprint)
        if metrics is not None:
            return Result(folder.path, metrics, skipped=True)
        model = model or build_model(settings, data)
        return Result(folder.path, _do(settings, data, model, folder, fingerprint, ranks))


def follow(settings: Settings, data: Data, ranks: Ranks) -> None:
    """Take part in the training of the first of several processes, unless it has no need of any.

    Raises:
        InputError, TrainingDiverged: as `run` does, in all processes.
    """
    settings = resolved(settings)
    model = build_model(settings, data)
    _check_draws(model, ranks)
    told = ranks.hear()
    if told is None:
        return
    folder, fingerprint = told
    optimizer = build_optimizer(settings, model)
    peak_memory = PeakMemory(model.classifier, optimizer, model.device)
    batches = few_shot_batches(settings, data, model)
    parts = model, batches, optimizer, peak_memory, RunFolder(folder)
    adapt(settings, *parts, fingerprint=fingerprint, ranks=ranks)


def _check_draws(model: Model, ranks: Ranks) -> None:
    """Refuse dropout where parts of a batch would have other values dropped than the whole."""
    if ranks.size > 1 and model.adapter is not None and model.adapter.draws is not None:
        raise InputError(
            f"adapter.dropout: {ranks.size} processes would drop other values of a batch than one "
            "does, and so come to other results. Use adapter.dropout=0, or leave out torchrun."
        )


def _do(
    settings: Settings,
    data: Data,
    model: Model,
    folder: RunFolder,
    fingerprint: str,
    ranks: Ranks,
) -> dict[str, Any]:
    """Do what has to be done, and return what metrics.json holds then."""
    _check_draws(model, ranks)
    evaluators = build_evaluators(settings, data, model)
    optimizer = build_optimizer(settings, model) if settings.trains else None
    peak_memory = PeakMemory(model.classifier, optimizer, model.device)
    if settings.adapts:
        batches = few_shot_batches(settings, data, model)
        zero_shot = {name: evaluator.zero_shot() for name, evaluator in evaluators.items()}
        folder.start(settings.as_dict(), data.few_shot.as_json() if data.few_shot else None)
        curve = Curve(evaluators[""], settings.evaluation.every_steps, peak_memory)
        if optimizer is not None:
            ranks.tell((folder.path, fingerprint))
        parts = model, batches, optimizer, peak_memory, folder, curve
        try:
            adaptation = adapt(settings, *parts, fingerprint, ranks)
        except TrainingDiverged:
            _write_provenance(folder, data, model, fingerprint)
            raise
        adapted = {name: evaluator.adapted() for name, evaluator in evaluators.items()}
    else:
        zero_shot = {name: evaluator.zero_shot() for name, evaluator in evaluators.items()}
        adapted = zero_shot
        adaptation = Adaptation(History(stop_reason="zero_shot"), 0.0, 0)
        folder.start(settings.as_dict(), None)
    if optimizer is None:
        evaluators[""].watch(peak_memory)
    outcomes = [Outcome(each, zero_shot[each.name], adapted[each.name]) for each in data.targets]
    values = write_outcomes(outcomes, folder)
    _write_provenance(folder, data, model, fingerprint)
    memory = peak_memory.result()
    results = values, adaptation, evaluators, memory
    metrics = run_metrics(settings, data, model, *results, fingerprint, ranks.size)
    folder.finish(metrics, summary(metrics, folder.path))
    return metrics


def _write_provenance(folder: RunFolder, data: Data, model: Model, fingerprint: str) -> None:
    folder.write_skipped(data.skipped)
    folder.write_provenance(
        provenance(
            describe(model.device),
            backbone=model.classifier.backbone.description,
            backbone_weights_sha256=model.weights_sha256,
            split_file=str(data.splits.file) if data.splits.file else None,
            split_file_sha256=data.splits.sha256,
            skipped_images=len(data.skipped),
            results_version=identity.RESULTS_VERSION,
            run_fingerprint=fingerprint,
            overrides=folder.overrides,  # in a sweep the command may be a worker's
        )
    )


def adapt(
    settings: Settings,
    model: Model,
    batches: TrainBatches,
    optimizer: torch.optim.Optimizer | None,
    peak_memory: PeakMemory,
    folder: RunFolder,
    curve: Curve | None = None,
    fingerprint: str = "",
    ranks: Ranks = ALONE,
) -> Adaptation:
    """Change the model with the few shots, from where an earlier process was cut off if one was.

    The first process writes history.csv, also if training fails, curve.csv and changed.csv.
    """
    adapter, classifier = model.adapter, model.classifier
    assert adapter is not None
    stopwatch = Stopwatch()
    watched_at = folder.path if ranks.first else None
    progress = Progress(watched_at, settings.schedule.max_steps, folder.overrides)
    progress.start()
    adapter.start(classifier, FewShotSupport(classifier, batches, model.precision, settings.seed))
    if optimizer is not None:
        ranks.agree([*model.parameters.values(), *classifier.buffers()])
    # On the host, so that the copy is no part of the device's peak.
    before = {name: value.detach().cpu().clone() for name, value in model.parameters.items()}
    curve = curve or Curve(None, 0, peak_memory)
    history = History(stop_reason="training_free")
    if optimizer is not None:
        checkpoint = Checkpoint(
            folder.path / CHECKPOINT_FILE,
            fingerprint,
            settings.checkpoint_seconds,
            stopwatch,
            writes=ranks.first,
            model=ModelState(model),
            optimizer=optimizer,
            scaler=model.precision.scaler,
            batches=batches,
            curve=curve,
            peak_memory=peak_memory,
        )
        try:
            watched = peak_memory, curve, progress
            history = _train(settings, model, batches, optimizer, *watched, checkpoint, ranks)
        except TrainingDiverged as error:
            if ranks.first:
                folder.write_history(error.history.losses, error.history.lrs)
                folder.write_curve(curve.rows)
                checkpoint.remove()
            raise
    adapter.finish(classifier)
    classifier.forget_classes()
    train_seconds = stopwatch.seconds - curve.seconds
    progress.evaluate()
    changed = [
        (name, value.numel(), int((value.detach().cpu() != before[name]).sum()))
        for name, value in model.parameters.items()
    ]
    if ranks.first:
        folder.write_history(history.losses, history.lrs)
        folder.write_curve(curve.rows)
        folder.write_changed(changed)
    return Adaptation(history, train_seconds, sum(count for *_, count in changed))


def _train(
    settings: Settings,
    model: Model,
    batches: TrainBatches,
    optimizer: torch.optim.Optimizer,
    peak_memory: PeakMemory,
    curve: Curve,
    progress: Progress,
    checkpoint: Checkpoint,
    ranks: Ranks,
) -> History:
    adapter, classifier = model.adapter, model.classifier
    assert adapter is not None

    def after_step(step: int) -> Iterable[nn.Parameter]:
        begun_anew = adapter.after_step(classifier, step)
        curve.after_step(step)
        return begun_anew

    return train(
        classifier,
        batches,
        optimizer,
        max_steps=settings.schedule.max_steps,
        stop_loss=settings.schedule.stop_loss,
        lr_min=settings.schedule.lr_min,
        precision=model.precision,
        peak_memory=peak_memory,
        penalty=partial(adapter.penalty, classifier),
        after_step=after_step,
        tell=progress.after_step,
        checkpoint=checkpoint,
        ranks=ranks,
    )


def summary(metrics: Mapping[str, Any], folder: Path) -> str:
    """Return the run's figures as a small table for people."""
    return summary_table(
        {
            **summary_rows(metrics),
            "peak memory": f"{metrics['peak_memory_mib']:.1f} MiB",
            "training": f"{metrics['train_seconds']:.1f} s, {metrics['steps']} steps",
            "run folder": str(folder),
        }
    )
