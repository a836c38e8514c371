"""An adaptation: the adapter's start, the training, the adapter's finish."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from so_clip.adaptation.records import NoRecords
from so_clip.build import build_optimizer
from so_clip.capture.captured_step import CapturedStep
from so_clip.capture.choice import why_eager
from so_clip.capture.cuda_recorder import CudaRecorder
from so_clip.capture.device_steps import device_steps
from so_clip.capture.eager import Eager
from so_clip.checkpoint import ModelState, Stopwatch
from so_clip.config.run_settings import RunSettings
from so_clip.data.batches import TrainBatches
from so_clip.data.sentence_batches import SentenceBatches
from so_clip.evaluate.accuracy_curve import Classifies, Curve
from so_clip.evaluate.evaluator import Evaluator
from so_clip.evaluate.few_shot_embeddings import FewShotEmbeddings
from so_clip.methods.adapter import FewShots
from so_clip.methods.model import Model
from so_clip.metrics import Adaptation
from so_clip.results.progress import Progress
from so_clip.runtime.distributed import ALONE, Ranks
from so_clip.runtime.peak_memory import PeakMemory, watched_start
from so_clip.train import History, Loop, TrainingDiverged, compute_gradients, train


class Adapting:
    """Adapts a model: holds its optimizer, its training examples and its peak memory.

    Args:
        settings: with `auto` resolved.
        model: as loaded, with its parameters opened.
        batches: of the few-shot images or sentences. None if nothing is adapted.
        records: keep files of the adaptation, or nothing.
        ranks: the processes that train together.
    """

    def __init__(
        self,
        settings: RunSettings,
        model: Model,
        batches: TrainBatches | SentenceBatches | None,
        records: NoRecords,
        ranks: Ranks = ALONE,
    ) -> None:
        self.settings, self.model, self.batches = settings, model, batches
        self.records, self.ranks = records, ranks
        self.optimizer: torch.optim.Optimizer | None = None
        if settings.trains:
            self.optimizer = build_optimizer(settings.method.optimizer, model)
        self._eager = self._why_eager()
        self.peak_memory = PeakMemory(model.classifier, self.optimizer, model.device)
        self._start_memory: PeakMemory | None = None

    def adapt(self, progress: Progress, evaluator: Classifies | None = None) -> Adaptation:
        """Change the model with the few-shot images. Continue from a checkpoint if there is one.

        The records are written also if training fails.

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
        few_shots = self.few_shots(batches)
        self.records.before_start()
        with self._start_watched():
            adapter.start(classifier, few_shots)
        self.records.after_start()
        if self.optimizer is not None:
            self.ranks.broadcast_tensors([*model.parameters.values(), *classifier.buffers()])
        curve = Curve(evaluator, settings.evaluation.every_steps, self.peak_memory)
        history = History(stop_reason="training_free")
        captured = self._captured_step()
        if self.optimizer is not None:
            history = self._train(self.optimizer, captured, curve, stopwatch, progress)
        adapter.finish(classifier)
        classifier.forget_classes()
        train_seconds = stopwatch.seconds - curve.seconds
        progress.evaluate()
        self.records.write_training(history, curve)
        changed_count = self.records.write_changes()
        return Adaptation(history, train_seconds, changed_count, batches.streamed, captured.outcome)

    def few_shots(self, batches: Any) -> FewShots:
        """Return the training examples, as an adapter's `start` may read them."""
        model, seed = self.model, self.settings.data.seed
        return FewShotEmbeddings(model.classifier, batches, model.precision, seed)

    def _why_eager(self) -> Eager | None:
        """Return why no training step is captured; None if one can be."""
        model = self.model
        return why_eager(
            self.settings.placement.graph,
            self.optimizer,
            device=model.device,
            precision=model.precision,
            processes=self.ranks.size,
            model_reason=model.classifier.not_capturable(),
            generators=self._generators(),
        )

    def _generators(self) -> list[torch.Generator]:
        draws = self.model.adapter.draws if self.model.adapter else None
        return [draws.generator] if draws is not None else []

    def _captured_step(self) -> CapturedStep | Eager:
        """Return the object that takes training steps as CUDA graphs, or why there is none."""
        if self._eager is not None:
            return self._eager
        model, adapter = self.model, self.model.adapter
        assert adapter is not None
        assert self.optimizer is not None
        steps = device_steps(self.optimizer)
        assert not isinstance(steps, Eager)
        gradients = partial(
            compute_gradients,
            model.classifier,
            precision=model.precision,
            penalty=partial(adapter.penalty, model.classifier),
            caches_casts=False,
        )
        return CapturedStep(
            gradients,
            model.classifier,
            self.optimizer,
            steps,
            CudaRecorder(model.device, self._generators()),
            other_parts=model.classifier.parts,
            demanded=self.settings.placement.graph is True,
        )

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
        captured: CapturedStep | Eager,
        curve: Curve,
        stopwatch: Stopwatch,
        progress: Progress,
    ) -> History:
        model, settings, ranks = self.model, self.settings, self.ranks
        adapter, classifier, batches = model.adapter, model.classifier, self.batches
        assert adapter is not None
        assert batches is not None
        checkpoint = self.records.checkpoint(
            stopwatch,
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
            captured=None if isinstance(captured, Eager) else captured,
            shows_bar=self.records.shows_bar,
        )
        schedule = settings.schedule
        try:
            return train(
                loop,
                max_steps=schedule.max_steps,
                stop_loss=schedule.stop_loss,
                stop_on=settings.stop_on,
                lr_min=schedule.lr_min,
                restarts=adapter.rate_restarts(),
            )
        except TrainingDiverged as error:
            self.records.write_training(error.history, curve)
            checkpoint.remove()
            raise

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
