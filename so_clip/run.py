"""One run, top to bottom: data, backbone, zero-shot, adapt, evaluate, record."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from so_clip.adaptation.adapting import Adapting
from so_clip.adaptation.records import FolderRecords
from so_clip.adapters.change import Change
from so_clip.adapters.file import SavedAdapter
from so_clip.adapters.of_run import adapter_of_run, write_adapter
from so_clip.build import base_of, build_model, few_shot_batches
from so_clip.clip.backbone import Backbone
from so_clip.config.resolve import resolved
from so_clip.config.run_settings import RunSettings
from so_clip.config.settings import Settings
from so_clip.data.batches import TrainBatches
from so_clip.data.run_data import Data
from so_clip.errors import InputError
from so_clip.evaluate.build import build_evaluators, build_validation_evaluator
from so_clip.evaluate.outcome import Outcome, logits_to_keep, write_outcomes
from so_clip.evaluate.validation import ValidationImages
from so_clip.fingerprint import Base, KnownRuns, run_dir, run_fingerprint
from so_clip.methods.model import Model
from so_clip.metrics import Adaptation, run_metrics, write_provenance
from so_clip.results.logits_file import Validation
from so_clip.results.progress import Progress
from so_clip.results.run_folder import RunFolder
from so_clip.results.scores import ADAPTED, NOT_ADAPTED
from so_clip.results.summary import summary_rows, summary_table
from so_clip.runtime.distributed import ALONE, Ranks
from so_clip.train import History, TrainingDiverged


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
    """Do one run and write its folder, unless the run is finished.

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
    return in_its_folder(
        settings,
        RunFolder(run_dir(settings, fingerprint)),
        fingerprint,
        lambda folder: work(settings, folder, fingerprint),
        overrides=overrides,
        keep_refusals=keep_refusals,
    )


def in_its_folder(
    settings: RunSettings,
    folder: RunFolder,
    fingerprint: str,
    work: Callable[[RunFolder], dict[str, Any]],
    *,
    overrides: Sequence[str] = (),
    keep_refusals: bool = False,
) -> Result:
    """Hold the run's folder, and do the work unless the folder has the finished run.

    Args:
        settings: of the run, on images or on sentences.
        folder, fingerprint: of the run.
        work: does the run in the folder, and returns metrics.json.
        overrides, keep_refusals: see RunFolder.claimed.
    """
    with folder.claimed(overrides, keep_refusals):
        metrics = None
        if not settings.placement.force:
            metrics = folder.finished(fingerprint, settings.demanded_files)
        if metrics is not None:
            return Result(folder.path, metrics, skipped=True)
        return Result(folder.path, work(folder))


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


class Run(Adapting):
    """A run at work: what evaluation, adaptation and records share.

    Args:
        settings, model, batches, ranks: see Adapting.
        folder: of the run, where all files go.
        fingerprint: of the run.
    """

    settings: Settings

    def __init__(
        self,
        settings: Settings,
        model: Model,
        folder: RunFolder,
        batches: TrainBatches | None,
        fingerprint: str = "",
        ranks: Ranks = ALONE,
    ) -> None:
        self.folder, self.fingerprint = folder, fingerprint
        self._kept = FolderRecords(model, folder, fingerprint, settings.placement, ranks.first)
        super().__init__(settings, model, batches, self._kept, ranks)

    @property
    def changes(self) -> dict[str, Change] | None:
        """Changes of the base's tensors, for the adapter file. None: there will be no file."""
        return self._kept.changes

    def do(self, data: Data) -> dict[str, Any]:
        """Evaluate, adapt, evaluate again, and return the content of metrics.json."""
        settings, model, folder = self.settings, self.model, self.folder
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
                name: evaluator.adapted(keeps[name].adapted).checked()
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

    def _write_provenance(self, data: Data) -> None:
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
