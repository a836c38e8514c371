"""One run, top to bottom: data, backbone, zero-shot, adapt, evaluate, record."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from so_clip.adapters.before import Before
from so_clip.adapters.change import Change
from so_clip.adapters.file import SavedAdapter
from so_clip.adapters.of_run import adapter_of_run, changes_to_save, write_adapter
from so_clip.build import (
    base_of,
    build_evaluators,
    build_model,
    build_optimizer,
    build_validation_evaluator,
    few_shot_batches,
)
from so_clip.checkpoint import Checkpoint, ModelState, NoCheckpoint, Stopwatch
from so_clip.clip.backbone import Backbone
from so_clip.config.resolve import resolved
from so_clip.config.settings import Settings
from so_clip.data.batches import TrainBatches
from so_clip.data.run_data import Data
from so_clip.errors import InputError
from so_clip.evaluate.accuracy_curve import Curve
from so_clip.evaluate.evaluator import Evaluator
from so_clip.evaluate.few_shot_embeddings import FewShotEmbeddings
from so_clip.evaluate.validation import ValidationImages
from so_clip.fingerprint import (
    Base,
    KnownRuns,
    run_dir,
    run_fingerprint,
)
from so_clip.methods.model import Model
from so_clip.metrics import (
    NOT_ADAPTED,
    Adaptation,
    Outcome,
    logits_to_keep,
    run_metrics,
    summary_rows,
    write_outcomes,
    write_provenance,
)
from so_clip.results.logits_file import Validation
from so_clip.results.progress import Progress
from so_clip.results.run_folder import CHECKPOINT_FILE, RunFolder, summary_table
from so_clip.results.scores import ADAPTED
from so_clip.runtime.device import threads_of
from so_clip.runtime.distributed import ALONE, Ranks
from so_clip.runtime.peak_memory import PeakMemory, watched_start
from so_clip.train import History, Loop, TrainingDiverged, train


@dataclass(frozen=True)
class Result:
    """A finished run: its folder, the content of metrics.json, and whether it was skipped."""

    folder: Path
    metrics: dict[str, Any]
    skipped: bool = False

    @property
    def table(self) -> str:
        """The run's scores as a small table for people."""
        return summary(self.metrics, self.folder)

    @property
    def line(self) -> str:
        """The most important scores in one line."""
        metrics = self.metrics
        return (
            f"{self.folder}: {metrics['accuracy_percent']:.2f} %, "
            f"{metrics['peak_memory_mib']:.1f} MiB, {metrics['train_seconds']:.1f} s"
        )


def run(
    settings: Settings,
    data: Data,
    *,
    overrides: Sequence[str] = (),
    keep_refusals: bool = False,
    ranks: Ranks = ALONE,
    known: KnownRuns | None = None,
    backbone: Backbone | None = None,
) -> Result:
    """Do one run, unless it is finished, and leave its folder behind.

    Bad input is found before the folder is created.

    Args:
        settings, data: of the run.
        overrides, keep_refusals: see RunFolder.claimed.
        ranks: the processes that do this run together. This is the first; the others `follow`.
        known: hashes from earlier runs of this process. This run adds its own.
        backbone: that of the settings, loaded already. The run changes it. None: it is loaded.

    Raises:
        InputError: a value or file of the user cannot be used.
        RunBusy: another process is running this configuration.
        TrainingDiverged: a loss is not finite. The folder keeps what was recorded.
    """
    settings = resolved(settings)
    known = known or KnownRuns()
    model = None
    base = known.base(settings)
    if base is None:
        model = build_model(settings, data, backbone)
        base = base_of(settings.backbone, model.classifier.backbone, model.weights_sha256)

    def work(settings: Settings, folder: RunFolder, fingerprint: str) -> dict[str, Any]:
        made = model or build_model(settings, data, backbone)
        batches = _batches(settings, data, made)
        return Run(settings, made, folder, batches, fingerprint, ranks).do(data)

    return unless_finished(
        settings,
        known.remember(settings, data, base),
        base,
        work,
        overrides=overrides,
        keep_refusals=keep_refusals,
        processes=ranks.size,
    )


def unless_finished(
    settings: Settings,
    contents_sha256: str,
    base: Base,
    work: Callable[[Settings, RunFolder, str], dict[str, Any]],
    *,
    overrides: Sequence[str] = (),
    keep_refusals: bool = False,
    processes: int = 1,
) -> Result:
    """Do the work of a run in its folder, unless the run is finished.

    Args:
        settings: with `auto` resolved.
        contents_sha256, base, processes: see run_fingerprint.
        work: does the run with its settings, folder and fingerprint; returns metrics.json.
        overrides, keep_refusals: see RunFolder.claimed.
    """
    settings = settings.with_logit_scale(base.logit_scale)
    fingerprint = run_fingerprint(settings, contents_sha256, base, processes)
    folder = RunFolder(run_dir(settings, fingerprint))
    with folder.claimed(overrides, keep_refusals):
        metrics = None
        if not settings.placement.force:
            metrics = folder.finished(fingerprint, settings.demanded_files)
        if metrics is not None:
            return Result(folder.path, metrics, skipped=True)
        return Result(folder.path, work(settings, folder, fingerprint))


def follow(settings: Settings, data: Data, ranks: Ranks) -> None:
    """Take part in the training that the first process leads. Return if there is none.

    Raises:
        InputError, TrainingDiverged: as `run` does, in all processes.
    """
    settings = resolved(settings)
    model = build_model(settings, data)
    check_dropout(model, ranks)
    received = ranks.receive()
    if received is None:
        return
    folder, fingerprint = received
    batches = _batches(settings, data, model)
    work = Run(settings, model, RunFolder(folder), batches, fingerprint, ranks)
    work.adapt(Progress(None, 0))


def _batches(settings: Settings, data: Data, model: Model) -> TrainBatches | None:
    return few_shot_batches(settings, data, model) if settings.adapts else None


def check_dropout(model: Model, ranks: Ranks) -> None:
    """Refuse dropout with several processes: they would not drop what one process drops."""
    if ranks.size > 1 and model.adapter is not None and model.adapter.draws is not None:
        raise InputError(
            f"adapter.dropout: {ranks.size} processes would drop other values of a batch than one "
            "does, and so come to other results. Use adapter.dropout=0, or leave out torchrun."
        )


class Run:
    """A run at work: what evaluation, adaptation and records share.

    Args:
        settings: with `auto` resolved.
        model: as loaded, with its parameters opened.
        folder: of the run, where all files go. None, for a task of a run: `adapt` writes nothing,
            shows no bar and cannot be continued.
        batches: of the few-shot images. None for a run that adapts nothing.
        fingerprint: of the run; its checkpoint carries it.
        ranks: the processes that train together.
    """

    def __init__(
        self,
        settings: Settings,
        model: Model,
        folder: RunFolder | None,
        batches: TrainBatches | None,
        fingerprint: str = "",
        ranks: Ranks = ALONE,
    ) -> None:
        self.settings, self.model, self.folder = settings, model, folder
        self.batches, self.fingerprint, self.ranks = batches, fingerprint, ranks
        self.optimizer: torch.optim.Optimizer | None = None
        # Changes of the base's tensors, for the adapter file. None: there will be no file.
        self.changes: dict[str, Change] | None = {}
        if settings.trains:
            self.optimizer = build_optimizer(settings.method.optimizer, model)
        self.peak_memory = PeakMemory(model.classifier, self.optimizer, model.device)
        self._start_memory: PeakMemory | None = None

    def do(self, data: Data) -> dict[str, Any]:
        """Evaluate, adapt, evaluate again, and return the content of metrics.json."""
        settings, model, folder = self.settings, self.model, self.folder
        assert folder is not None
        check_dropout(model, self.ranks)
        progress = folder.watched(settings.schedule.max_steps if settings.trains else 0)
        keeps = logits_to_keep(settings, data)
        evaluators = build_evaluators(settings, data, model)
        for evaluator in evaluators.values():
            evaluator.tick = progress.tick
        zero_shot = {
            name: evaluator.zero_shot(keeps[name].zero_shot)
            for name, evaluator in evaluators.items()
        }
        images, validation = None, None
        if settings.adapts and (keeps[""].adapted or settings.placement.save is not False):
            images = ValidationImages(build_validation_evaluator(settings, data, model))
            images.zero_shot()
        few_shot = data.few_shot.as_json() if settings.adapts and data.few_shot else None
        folder.start(settings.record(), few_shot)
        if settings.adapts:
            if settings.trains:
                self.ranks.broadcast((folder.path, self.fingerprint))
            try:
                adaptation = self.adapt(progress, evaluators[""])
            except TrainingDiverged:
                self._write_provenance(data)
                raise
            adapted = {
                name: evaluator.adapted(keeps[name].adapted)
                for name, evaluator in evaluators.items()
            }
            validation = images.adapted() if images else None
        else:  # there is a text tower: other backbones are refused without an adapter
            adapted = {name: found for name, found in zero_shot.items() if found is not None}
            adaptation = Adaptation(History(stop_reason=NOT_ADAPTED), 0.0, 0)
        memory = self.memory(evaluators[""])
        outcomes = [
            Outcome(test_set, zero_shot[test_set.name], adapted[test_set.name])
            for test_set in data.test_sets
        ]
        scores = write_outcomes(outcomes, folder, validation, self.fingerprint)
        adapter = self._adapter(data, validation)
        adapter_mib = write_adapter(folder, settings.placement.save, adapter)
        self._write_provenance(data)
        metrics = run_metrics(
            settings,
            data,
            model,
            scores=scores,
            adaptation=adaptation,
            evaluators=evaluators,
            memory=memory,
            fingerprint=self.fingerprint,
            validation=validation,
            validation_seconds=images.seconds if images else 0.0,
            processes=self.ranks.size,
            adapter_mib=adapter_mib,
            optimizer=self.optimizer,
        )
        folder.finish(metrics, summary(metrics, folder.path))
        return metrics

    def adapt(self, progress: Progress, evaluator: Evaluator | None = None) -> Adaptation:
        """Change the model with the few-shot images. Continue from a checkpoint if there is one.

        The first process writes history.csv (also if training fails), curve.csv and changed.csv.

        Args:
            progress: records how far the run is.
            evaluator: of the run's own test split, for curve.csv. None measures no curve.
        """
        model, settings = self.model, self.settings
        adapter, classifier, batches = model.adapter, model.classifier, self.batches
        assert adapter is not None
        assert batches is not None
        stopwatch = Stopwatch()
        progress.train()
        few_shot = FewShotEmbeddings(classifier, batches, model.precision, settings.data.seed)
        before = Before(model) if self.folder else None
        with self._start_watched():
            adapter.start(classifier, few_shot)
        if before:
            before.started()
        if self.optimizer is not None:
            self.ranks.broadcast_tensors([*model.parameters.values(), *classifier.buffers()])
        curve = Curve(evaluator, settings.evaluation.every_steps, self.peak_memory)
        history = History(stop_reason="training_free")
        if self.optimizer is not None:
            history = self._train(self.optimizer, curve, stopwatch, progress)
        adapter.finish(classifier)
        classifier.forget_classes()
        train_seconds = stopwatch.seconds - curve.seconds
        progress.evaluate()
        changed = before.counts() if before else []
        if self.folder and before and self.ranks.first:
            self._write_training(history, curve)
            self.folder.write_changed(changed)
            self.changes = changes_to_save(before, settings.placement.save)
        changed_count = sum(row.changed for row in changed)
        return Adaptation(history, train_seconds, changed_count, batches.streamed)

    def _start_watched(self) -> AbstractContextManager[Any]:
        """Return a context that measures `start` of an adapter with a state beside the model."""
        state = self.model.adapter and self.model.adapter.start_state()
        if not state:
            return nullcontext()
        self._start_memory = watched_start(self.model.classifier, state, self.model.device)
        return self._start_memory

    def _train(
        self,
        optimizer: torch.optim.Optimizer,
        curve: Curve,
        stopwatch: Stopwatch,
        progress: Progress,
    ) -> History:
        model, settings, ranks = self.model, self.settings, self.ranks
        adapter, classifier, batches = model.adapter, model.classifier, self.batches
        assert adapter is not None
        assert batches is not None
        checkpoint = NoCheckpoint()
        if self.folder:
            checkpoint = Checkpoint(
                self.folder.path / CHECKPOINT_FILE,
                self.fingerprint,
                settings.placement.checkpoint_seconds,
                stopwatch,
                writes=ranks.first,
                threads=threads_of(model.device),
                model=ModelState(model),
                optimizer=optimizer,
                scaler=model.precision.scaler,
                batches=batches,
                curve=curve,
                peak_memory=self.peak_memory,
            )

        def after_step(step: int) -> Iterable[nn.Parameter]:
            restarted = adapter.after_step(classifier, step)
            curve.after_step(step)
            return restarted

        loop = Loop(
            classifier,
            batches,
            optimizer,
            model.precision,
            self.peak_memory,
            penalty=partial(adapter.penalty, classifier),
            after_step=after_step,
            report=progress.after_step,
            checkpoint=checkpoint,
            ranks=ranks,
            shows_bar=self.folder is not None,
        )
        schedule = settings.schedule
        try:
            return train(
                loop,
                max_steps=schedule.max_steps,
                stop_loss=schedule.stop_loss,
                lr_min=schedule.lr_min,
                restarts=adapter.rate_restarts(),
            )
        except TrainingDiverged as error:
            if ranks.first:
                self._write_training(error.history, curve)
                checkpoint.remove()
            raise

    def _adapter(self, data: Data, validation: Validation | None) -> SavedAdapter | None:
        """Return the adapter, unless its changes are too large already or nothing is saved."""
        if self.changes is None or self.settings.placement.save is False:
            return None
        return adapter_of_run(
            self.settings,
            data,
            self.model,
            self.changes,
            fingerprint=self.fingerprint,
            temperature=validation.temperatures[ADAPTED] if validation else None,
            calibrated_on=len(validation.label_V) if validation else 0,
        )

    def memory(self, evaluator: Evaluator) -> dict[str, float]:
        """Return the peak memory of training. A run that trains nothing has that of evaluation.

        A start from a state beside the model has another peak, `start_peak_memory_mib`.
        """
        peak_memory = self.peak_memory
        if self.optimizer is None:
            peak_memory = PeakMemory(self.model.classifier, None, self.model.device)
            evaluator.watch(peak_memory)
        start = {}
        if self._start_memory is not None:
            start["start_peak_memory_mib"] = self._start_memory.result()["peak_memory_mib"]
        return peak_memory.result() | start

    def _write_training(self, history: History, curve: Curve) -> None:
        if self.folder:
            self.folder.write_history(history.losses, history.lrs)
            self.folder.write_curve(curve.rows)

    def _write_provenance(self, data: Data) -> None:
        assert self.folder is not None
        # In a sweep the command line may be a worker's, so the overrides are recorded too.
        write_provenance(
            self.folder,
            data,
            self.model.classifier.backbone,
            device=self.model.device,
            weights_sha256=self.model.weights_sha256,
            fingerprint=self.fingerprint,
            overrides=self.folder.overrides,
        )


def summary(metrics: Mapping[str, Any], folder: Path) -> str:
    """Return the run's scores as a small table for people."""
    return summary_table(
        {
            **summary_rows(metrics),
            "peak memory": f"{metrics['peak_memory_mib']:.1f} MiB",
            "training": f"{metrics['train_seconds']:.1f} s, {metrics['steps']} steps",
            "run folder": str(folder),
        }
    )
