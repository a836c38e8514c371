"""One run, top to bottom: data, backbone, zero-shot, adapt, evaluate, record."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from so_clip import fingerprint as identity
from so_clip.adapt.model import Model
from so_clip.build import (
    build_evaluators,
    build_model,
    build_optimizer,
    few_shot_batches,
)
from so_clip.checkpoint import Checkpoint, ModelState, Stopwatch
from so_clip.config.resolve import resolved
from so_clip.config.settings import Settings
from so_clip.data.batches import TrainBatches
from so_clip.data.run_data import Data
from so_clip.errors import InputError
from so_clip.evaluate.accuracy_curve import Curve
from so_clip.evaluate.evaluator import Evaluator
from so_clip.evaluate.few_shot_embeddings import FewShotEmbeddings
from so_clip.metrics import Adaptation, Outcome, run_metrics, summary_rows, write_outcomes
from so_clip.results.progress import Progress
from so_clip.results.provenance import provenance
from so_clip.results.run_folder import CHECKPOINT_FILE, RunFolder, summary_table
from so_clip.runtime.device import describe
from so_clip.runtime.distributed import ALONE, Ranks
from so_clip.runtime.peak_memory import PeakMemory
from so_clip.train import History, Loop, TrainingDiverged, train
from so_clip.version import RESULTS_VERSION

NOBODY_WATCHES = Progress(None, 0)


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

    @property
    def line(self) -> str:
        """The most important ones in a line."""
        metrics = self.metrics
        return (
            f"{self.folder}: {metrics['accuracy_percent']:.2f} %, "
            f"{metrics['peak_memory_mib']:.1f} MiB, {metrics['train_seconds']:.1f} s"
        )


@dataclass(frozen=True)
class Parts:
    """What an adaptation works with.

    Attributes:
        settings: of the run.
        model: as it was loaded, its parameters opened.
        batches: of the few shots.
        optimizer: over the opened parameters; None where nothing is trained.
        peak_memory: watches the first steps.
        folder: of the run, where checkpoints and training's files go.
        fingerprint: of the run, by which its checkpoint is known.
        ranks: the processes that train together.
        progress: where to say how far it is.
        evaluator: of the run's own test split, for the curve; None draws none.
    """

    settings: Settings
    model: Model
    batches: TrainBatches
    optimizer: torch.optim.Optimizer | None
    peak_memory: PeakMemory
    folder: RunFolder
    fingerprint: str = ""
    ranks: Ranks = ALONE
    progress: Progress = NOBODY_WATCHES
    evaluator: Evaluator | None = None


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
        identity.remember(settings, data, weights_sha256)
    known = identity.contents_sha256(data, settings.template), weights_sha256
    fingerprint = identity.run_fingerprint(settings, *known, ranks.size)
    folder = RunFolder(identity.run_dir(settings, fingerprint))
    with folder.claimed(overrides, keep_refusals):
        metrics = None if settings.force else folder.finished(fingerprint)
        if metrics is not None:
            return Result(folder.path, metrics, skipped=True)
        if model is None:
            model = build_model(settings, data)
            identity.remember(settings, data, weights_sha256)
        return Result(folder.path, _do(settings, data, model, folder, fingerprint, ranks))


def follow(settings: Settings, data: Data, ranks: Ranks) -> None:
    """Take part in the training of the first of several processes, unless it has no need of any.

    Raises:
        InputError, TrainingDiverged: as `run` does, in all processes.
    """
    settings = resolved(settings)
    model = build_model(settings, data)
    _check_draws(model, ranks)
    told = ranks.receive()
    if told is None:
        return
    folder, fingerprint = told
    adapt(_parts(settings, data, model, RunFolder(folder), fingerprint, ranks))


def _parts(
    settings: Settings,
    data: Data,
    model: Model,
    folder: RunFolder,
    fingerprint: str,
    ranks: Ranks,
    progress: Progress = NOBODY_WATCHES,
    evaluator: Evaluator | None = None,
) -> Parts:
    optimizer = build_optimizer(settings, model) if settings.trains else None
    peak_memory = PeakMemory(model.classifier, optimizer, model.device)
    batches = few_shot_batches(settings, data, model)
    work = model, batches, optimizer, peak_memory
    return Parts(settings, *work, folder, fingerprint, ranks, progress, evaluator)


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
    progress = folder.watched(settings.schedule.max_steps if settings.trains else 0)
    evaluators = build_evaluators(settings, data, model)
    for evaluator in evaluators.values():
        evaluator.tick = progress.tick
    parts = None
    if settings.adapts:
        known = folder, fingerprint, ranks, progress
        parts = _parts(settings, data, model, *known, evaluators[""])
    zero_shot = {name: evaluator.zero_shot() for name, evaluator in evaluators.items()}
    few_shot = data.few_shot.as_json() if parts and data.few_shot else None
    folder.start(settings.as_dict(), few_shot)
    if parts is None:
        adapted, adaptation = zero_shot, Adaptation(History(stop_reason="zero_shot"), 0.0, 0)
    else:
        if parts.optimizer is not None:
            ranks.broadcast((folder.path, fingerprint))
        try:
            adaptation = adapt(parts)
        except TrainingDiverged:
            _write_provenance(folder, data, model, fingerprint)
            raise
        adapted = {name: evaluator.adapted() for name, evaluator in evaluators.items()}
    memory = _memory(parts, model, evaluators[""])
    outcomes = [Outcome(each, zero_shot[each.name], adapted[each.name]) for each in data.test_sets]
    values = write_outcomes(outcomes, folder)
    _write_provenance(folder, data, model, fingerprint)
    metrics = run_metrics(
        settings, data, model, values, adaptation, evaluators, memory, fingerprint, ranks.size
    )
    folder.finish(metrics, summary(metrics, folder.path))
    return metrics


def _memory(parts: Parts | None, model: Model, evaluator: Evaluator) -> dict[str, float]:
    """Return the peak of training; where nothing is trained, that of evaluation."""
    if parts is not None and parts.optimizer is not None:
        return parts.peak_memory.result()
    peak_memory = PeakMemory(model.classifier, None, model.device)
    evaluator.watch(peak_memory)
    return peak_memory.result()


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
            results_version=RESULTS_VERSION,
            run_fingerprint=fingerprint,
            overrides=folder.overrides,  # in a sweep the command may be a worker's
        )
    )


def adapt(parts: Parts) -> Adaptation:
    """Change the model with the few shots, from where an earlier process was cut off if one was.

    The first process writes history.csv, also if training fails, curve.csv and changed.csv.
    """
    model, settings, folder = parts.model, parts.settings, parts.folder
    adapter, classifier = model.adapter, model.classifier
    assert adapter is not None
    stopwatch = Stopwatch()
    parts.progress.train()
    support = FewShotEmbeddings(classifier, parts.batches, model.precision, settings.seed)
    adapter.start(classifier, support)
    if parts.optimizer is not None:
        parts.ranks.broadcast_tensors([*model.parameters.values(), *classifier.buffers()])
    # On the host, so that the copy is no part of the device's peak.
    before = {name: value.detach().cpu().clone() for name, value in model.parameters.items()}
    curve = Curve(parts.evaluator, settings.evaluation.every_steps, parts.peak_memory)
    history = History(stop_reason="training_free")
    if parts.optimizer is not None:
        history = _train(parts, parts.optimizer, curve, stopwatch)
    adapter.finish(classifier)
    classifier.forget_classes()
    train_seconds = stopwatch.seconds - curve.seconds
    parts.progress.evaluate()
    changed = [
        (name, value.numel(), int((value.detach().cpu() != before[name]).sum()))
        for name, value in model.parameters.items()
    ]
    if parts.ranks.first:
        _write_training(folder, history, curve)
        folder.write_changed(changed)
    changed_count = sum(count for *_, count in changed)
    return Adaptation(history, train_seconds, changed_count, parts.batches.streamed)


def _train(
    parts: Parts,
    optimizer: torch.optim.Optimizer,
    curve: Curve,
    stopwatch: Stopwatch,
) -> History:
    model, settings, ranks = parts.model, parts.settings, parts.ranks
    adapter, classifier = model.adapter, model.classifier
    assert adapter is not None
    checkpoint = Checkpoint(
        parts.folder.path / CHECKPOINT_FILE,
        parts.fingerprint,
        settings.checkpoint_seconds,
        stopwatch,
        writes=ranks.first,
        threads=torch.get_num_threads() if model.device.type == "cpu" else None,
        model=ModelState(model),
        optimizer=optimizer,
        scaler=model.precision.scaler,
        batches=parts.batches,
        curve=curve,
        peak_memory=parts.peak_memory,
    )

    def after_step(step: int) -> Iterable[nn.Parameter]:
        begun_anew = adapter.after_step(classifier, step)
        curve.after_step(step)
        return begun_anew

    loop = Loop(
        classifier,
        parts.batches,
        optimizer,
        model.precision,
        parts.peak_memory,
        penalty=partial(adapter.penalty, classifier),
        after_step=after_step,
        tell=parts.progress.after_step,
        checkpoint=checkpoint,
        ranks=ranks,
    )
    try:
        end = settings.schedule
        return train(loop, max_steps=end.max_steps, stop_loss=end.stop_loss, lr_min=end.lr_min)
    except TrainingDiverged as error:
        if ranks.first:
            _write_training(parts.folder, error.history, curve)
            checkpoint.remove()
        raise


def _write_training(folder: RunFolder, history: History, curve: Curve) -> None:
    folder.write_history(history.losses, history.lrs)
    folder.write_curve(curve.rows)


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
