"""One meta-training, top to bottom: data, backbone, training, validation, test, records."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from so_clip.build import load
from so_clip.checkpoint import Checkpoint, Stopwatch
from so_clip.clip.backbone import Backbone
from so_clip.clip.pixels import preprocessing_of, unusual_pixels
from so_clip.data.image_memory import auto_budget_mib
from so_clip.data.transforms import RandomResizedCrop
from so_clip.errors import InputError, RunFailed, show_progress
from so_clip.fingerprint import Base, file_sha256
from so_clip.meta.evaluation import TaskAccuracies, class_texts
from so_clip.meta.identity import meta_fingerprint, meta_run_dir
from so_clip.meta.images import EpisodeImages, KeptPixels
from so_clip.meta.outcome import (
    Outcome,
    meta_metrics,
    summary,
    write_masks,
    write_provenance,
)
from so_clip.meta.records import TestRecords, TrainingRecords, mean_accuracy
from so_clip.meta.settings import BEST, MetaSettings
from so_clip.meta.tasks import MetaTasks
from so_clip.meta.train import WATCHED_TASKS, MetaLoop, train
from so_clip.methods.weights import Weights
from so_clip.results.progress import Progress
from so_clip.results.run_files import SMAT_FILE, finished_meta
from so_clip.results.run_folder import CHECKPOINT_FILE, RunFolder
from so_clip.runtime.device import pick_device, threads_of
from so_clip.runtime.peak_memory import PeakMemory
from so_clip.runtime.precision import Precision, pick_precision
from so_clip.smat.checkpoint_file import load_checkpoint, save_checkpoint
from so_clip.smat.direct import FROZEN
from so_clip.smat.model import Smat
from so_clip.smat.training import MetaTraining
from so_clip.system import atomic

BEST_FILE = "best-{tasks}.safetensors"
_BEST_FILES = BEST_FILE.format(tasks="*")


@dataclass(frozen=True)
class MetaResult:
    """A finished meta-training: its folder, its metrics.json, and whether it was skipped."""

    folder: Path
    metrics: dict[str, Any]
    skipped: bool = False

    @property
    def file(self) -> Path:
        """The file of the meta-trained experts."""
        return self.folder / SMAT_FILE

    @property
    def table(self) -> str:
        """The scores as a small table for people."""
        return summary(self.metrics, self.folder)


def meta_run(settings: MetaSettings, tasks: MetaTasks, overrides: Sequence[str] = ()) -> MetaResult:
    """Do one meta-training and write its folder, unless it is finished.

    Bad input is found before the folder is created.

    Args:
        settings, tasks: of the run.
        overrides: of the command line, for error.json and provenance.json.

    Raises:
        InputError: a value or file of the user cannot be used.
        RunBusy: another process is running this configuration.
        RunFailed: a loss is not finite. The folder keeps what was recorded.
    """
    settings = _resolved(settings)
    backbone = load(settings.backbone, settings.data.seed)
    _check_head(settings, backbone)
    parts = Weights(settings.adapter.roles, "vision", settings.adapter.position).parts_of(backbone)
    pixels = unusual_pixels(preprocessing_of(backbone), settings.backbone.architecture)
    base = Base(backbone.weights_sha256, pixels, backbone.logit_scale)
    fingerprint = meta_fingerprint(settings, tasks, base)
    folder = RunFolder(meta_run_dir(settings, fingerprint), kept=(SMAT_FILE, _BEST_FILES))
    with folder.claimed(overrides):
        metrics = None
        if not settings.placement.force:
            metrics = folder.finished(fingerprint, (SMAT_FILE,), finished_meta)
        if metrics is not None:
            return MetaResult(folder.path, metrics, skipped=True)
        options = settings.adapter.model
        if not backbone.has_text:
            options = replace(options, text_tokens=False)  # their layer would never be trained
        smat = Smat(parts, backbone.dimensions, options, settings.data.seed)
        work = MetaRun(settings, tasks, backbone, smat, folder, base, fingerprint)
        return MetaResult(folder.path, work.do())


def _resolved(settings: MetaSettings) -> MetaSettings:
    """Return the settings with `auto` replaced, so that fingerprints differ between machines."""
    device = pick_device(settings.placement.device)
    precision = pick_precision(settings.placement.precision, device)
    update = {"device": str(device), "precision": precision}
    return settings.model_copy(update={"placement": settings.placement.model_copy(update=update)})


def _check_head(settings: MetaSettings, backbone: Backbone) -> None:
    head = settings.training.head
    if head != "prototype" and not backbone.has_text:
        raise InputError(
            f"training.head={head}: {backbone.description} has no text tower. Use "
            "training.head=prototype."
        )


class MetaRun:
    """A meta-training at work: what training, validation, test and records share.

    Args:
        settings: with `auto` resolved.
        tasks: datasets and samplers.
        backbone: as loaded.
        smat: the experts before training.
        folder: of the run, claimed.
        base: hashes of the backbone.
        fingerprint: of the run.
    """

    def __init__(
        self,
        settings: MetaSettings,
        tasks: MetaTasks,
        backbone: Backbone,
        smat: Smat,
        folder: RunFolder,
        base: Base,
        fingerprint: str,
    ) -> None:
        self.settings, self.tasks, self.folder = settings, tasks, folder
        self.base, self.fingerprint = base, fingerprint
        self.device = torch.device(settings.placement.device)
        self.precision = Precision(settings.placement.precision, self.device)
        self.backbone = backbone.to(self.device).requires_grad_(False)
        self.backbone.memory = settings.placement.memory
        self.training = MetaTraining(
            self.backbone,
            smat.to(self.device),
            settings.training.options,
            self.precision,
            settings.data.seed,
        )
        self.records, self.tests = TrainingRecords(self.training), TestRecords()
        optimizers = [*self.training.optimizers.values()]
        self.peak_memory = PeakMemory(nn.ModuleList([backbone, smat]), optimizers, self.device)
        budget_mib = settings.placement.image_budget_mib
        kept = KeptPixels(auto_budget_mib() if budget_mib is None else budget_mib)
        workers = settings.placement.workers
        self.images = EpisodeImages(tasks.images, kept, workers, self.device)

    def do(self) -> dict[str, Any]:
        """Train, test, and return the content of metrics.json."""
        settings, folder = self.settings, self.folder
        progress = folder.watched(settings.training.tasks, unit="task")
        class_KD = class_texts(
            self.backbone, self.tasks.datasets, settings.data.template, self.device
        )
        accuracies = TaskAccuracies(
            self.backbone, self.images, class_KD, self.precision, progress.tick
        )
        folder.start(settings.record(), None)
        stopwatch = Stopwatch()
        checkpoint = self._checkpoint(stopwatch)
        checkpoint.restore()
        self._check_files(checkpoint)
        if not self._is_trained:
            self._train(progress, class_KD, accuracies, checkpoint, stopwatch)
        train_seconds = stopwatch.seconds
        progress.evaluate()
        saved = load_checkpoint(folder.path / SMAT_FILE)
        smat = saved.smat.to(self.device)
        self._test(smat, accuracies, checkpoint)
        self.records.write(folder)
        self.tests.write(folder)
        write_masks(folder, saved.smat)
        outcome = Outcome(
            settings,
            self.tasks,
            self.backbone,
            self.base,
            self.fingerprint,
            self.device,
            self.precision.name,
            saved,
            self.records,
            self.tests,
            self.peak_memory.result(),
            train_seconds,
        )
        write_provenance(folder, outcome)
        metrics = meta_metrics(outcome, folder)
        folder.finish(metrics, summary(metrics, folder.path))
        self._remove_best()
        return metrics

    @property
    def _is_trained(self) -> bool:
        """Whether training ended, in an earlier process. Its last state is not loaded then."""
        return not self.training.tasks and bool(self.records.history)

    def _checkpoint(self, stopwatch: Stopwatch) -> Checkpoint:
        return Checkpoint(
            self.folder.path / CHECKPOINT_FILE,
            self.fingerprint,
            self.settings.placement.checkpoint_seconds,
            stopwatch,
            threads=threads_of(self.device),
            meta_training=self.training,
            records=self.records,
            tests=self.tests,
            peak_memory=self.peak_memory,
        )

    def _check_files(self, checkpoint: Checkpoint) -> None:
        """Refuse to resume without a file that belongs to the checkpoint."""
        best = self._best_path()
        needed = self.folder.path / SMAT_FILE if self._is_trained else best
        if needed is None:
            return
        problem = ""
        if not needed.is_file():
            problem = "is missing"
        elif file_sha256(needed) != self.records.file_sha256:
            problem = "is not the file that this run wrote"
        if problem:
            checkpoint.remove()
            raise InputError(
                f"{needed}: {problem}, and this run resumes from it. Repeat the run: training "
                "then starts from the beginning."
            )

    def _best_path(self) -> Path | None:
        best = self.records.best
        if best is None or self.settings.data.select != BEST:
            return None
        return self.folder.path / BEST_FILE.format(tasks=best[0])

    def _train(
        self,
        progress: Progress,
        class_KD: Mapping[str, Tensor],
        accuracies: TaskAccuracies,
        checkpoint: Checkpoint,
        stopwatch: Stopwatch,
    ) -> None:
        """Train, and write the file of the chosen state."""
        settings = self.settings
        data, augment = settings.data, settings.augment

        def validate() -> None:
            with stopwatch.paused():
                self._validate(accuracies, checkpoint)

        progress.train()
        loop = MetaLoop(
            self.training,
            self.records,
            sampler=self.tasks.train,
            images=self.images,
            crop=RandomResizedCrop(self.backbone.image_size, augment.scale, augment.flip),
            seed=data.seed,
            class_KD=class_KD,
            validate=validate,
            validate_every=data.validate_every if data.validation_tasks else 0,
            peak_memory=self.peak_memory,
            report=progress.after_step,
            checkpoint=checkpoint,
        )
        try:
            train(loop)
        except RunFailed:
            self.records.write(self.folder)
            checkpoint.remove()
            raise
        best = self._best_path()
        if best is None:
            self._save(SMAT_FILE)
        else:
            atomic.write_bytes(self.folder.path / SMAT_FILE, best.read_bytes())
        checkpoint.after_training()

    def _validate(self, accuracies: TaskAccuracies, checkpoint: Checkpoint) -> None:
        """Measure the state on the validation tasks; keep it if it is the best."""
        watch, settings = Stopwatch(), self.settings
        by_source = accuracies.of_samplers(
            self.training.smat, self.tasks.validation, settings.data.validation_tasks
        )
        self.records.validation_seconds += watch.seconds
        head = settings.training.head
        is_best = self.records.after_validation(by_source, head)
        if not sys.stderr.isatty():  # a terminal has a progress bar
            merged, frozen = (mean_accuracy(by_source, name) for name in (head, f"{FROZEN}_{head}"))
            show_progress(
                f"validation after {self.training.tasks} tasks: {merged:.2f} % merged, "
                f"{frozen:.2f} % frozen encoder"
            )
        self.records.write(self.folder)
        if is_best and settings.data.select == BEST:
            path = self._best_path()
            assert path is not None
            self._save(path.name)
            if self.training.tasks >= WATCHED_TASKS:  # the peak memory is known
                checkpoint.write()  # from here on, no checkpoint needs an earlier file
            self._remove_best(but=path)

    def _remove_best(self, but: Path | None = None) -> None:
        for path in self.folder.path.glob(_BEST_FILES):
            if path != but:
                path.unlink(missing_ok=True)

    def _save(self, name: str) -> None:
        """Write the state of the experts. The file depends on no target."""
        data = self.settings.data
        self.folder.check_in_place()
        save_checkpoint(
            self.folder.path / name,
            self.training.smat,
            architecture=self.backbone.description,
            weights_sha256=self.base.weights_sha256,
            about={
                "sources": list(data.sources),
                "tasks": self.training.tasks,
                "planned_tasks": self.settings.training.tasks,
                "training_head": self.settings.training.head,
                "seed": data.seed,
            },
        )
        self.records.file_sha256 = file_sha256(self.folder.path / name)

    def _test(self, smat: Smat, accuracies: TaskAccuracies, checkpoint: Checkpoint) -> None:
        """Measure the chosen state on the tasks of each target that are not measured yet."""
        tests = self.tests
        for target, sampler in self.tasks.test.items():
            left = range(tests.done(target), self.settings.data.test_tasks)
            watch = Stopwatch()
            for found in accuracies.of_tasks(smat, sampler, left, f"test on {target}"):
                tests.add(target, found)
                tests.seconds, watch = tests.seconds + watch.seconds, Stopwatch()
                checkpoint.after_step()
