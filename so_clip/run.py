"""One run, top to bottom: data, backbone, zero-shot, adapt, evaluate, record."""

import time
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
from so_clip.memory import PeakMemory
from so_clip.metrics import Adaptation, Outcome, run_metrics, summary_rows, write_outcomes
from so_clip.record import RunFolder, provenance, summary_table
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
    settings: Settings, data: Data, overrides: Sequence[str] = (), keep_refusals: bool = False
) -> Result:
    """Do one run, unless it is finished, and leave its folder behind.

    Whatever is wrong with the input is found before the folder is created.

    Args:
        settings, data: of the run.
        overrides, keep_refusals: see RunFolder.claimed.

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
    split_sha256 = identity.split_sha256(data)
    fingerprint = identity.run_fingerprint(settings, split_sha256, weights_sha256)
    folder = RunFolder(identity.run_dir(settings, fingerprint))
    with folder.claimed(overrides, keep_refusals):
        metrics = None if settings.force else folder.finished(fingerprint)
        if metrics is not None:
            return Result(folder.path, metrics, skipped=True)
        model = model or build_model(settings, data)
        return Result(folder.path, _do(settings, data, model, folder, fingerprint))


def _do(
    settings: Settings, data: Data, model: Model, folder: RunFolder, fingerprint: str
) -> dict[str, Any]:
    """Do what has to be done, and return what metrics.json holds then."""
    evaluators = build_evaluators(settings, data, model)
    optimizer = build_optimizer(settings, model) if settings.trains else None
    peak_memory = PeakMemory(model.classifier, optimizer, model.device)
    if settings.adapts:
        batches = few_shot_batches(settings, data, model)
        zero_shot = {name: evaluator.zero_shot() for name, evaluator in evaluators.items()}
        folder.start(settings.as_dict(), data.few_shot.as_json() if data.few_shot else None)
        curve = Curve(evaluators[""], settings.evaluation.every_steps, peak_memory)
        adaptation = adapt(settings, model, batches, optimizer, peak_memory, folder, curve)
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
    folder.write_provenance(
        provenance(
            describe(model.device),
            backbone=model.classifier.backbone.description,
            backbone_weights_sha256=model.weights_sha256,
            split_file=str(data.splits.file) if data.splits.file else None,
            split_file_sha256=data.splits.sha256,
            results_version=identity.RESULTS_VERSION,
            run_fingerprint=fingerprint,
        )
    )
    memory = peak_memory.result()
    results = values, adaptation, evaluators, memory
    metrics = run_metrics(settings, data, model, *results, fingerprint)
    folder.finish(metrics, summary(metrics, folder.path))
    return metrics


def adapt(
    settings: Settings,
    model: Model,
    batches: TrainBatches,
    optimizer: torch.optim.Optimizer | None,
    peak_memory: PeakMemory,
    folder: RunFolder,
    curve: Curve | None = None,
) -> Adaptation:
    """Change the model with the few shots; write history.csv also if training fails."""
    adapter, classifier = model.adapter, model.classifier
    assert adapter is not None
    started = time.perf_counter()
    adapter.start(classifier, FewShotSupport(classifier, batches, model.precision, settings.seed))
    # On the host, so that the copy is no part of the device's peak.
    before = {name: value.detach().cpu().clone() for name, value in model.parameters.items()}
    history = History(stop_reason="training_free")

    def after_step(step: int) -> Iterable[nn.Parameter]:
        begun_anew = adapter.after_step(classifier, step)
        if curve is not None:
            curve.after_step(step)
        return begun_anew

    if optimizer is not None:
        try:
            history = train(
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
            )
        except TrainingDiverged as error:
            folder.write_history(error.history.losses, error.history.lrs)
            if curve is not None:
                folder.write_curve(curve.rows)
            raise
    adapter.finish(classifier)
    classifier.forget_classes()
    train_seconds = time.perf_counter() - started
    folder.write_history(history.losses, history.lrs)
    if curve is not None:
        train_seconds -= curve.seconds
        folder.write_curve(curve.rows)
    changed = sum(
        int((value.detach().cpu() != before[name]).sum())
        for name, value in model.parameters.items()
    )
    return Adaptation(history, train_seconds, changed)


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
