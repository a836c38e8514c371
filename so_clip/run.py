"""One run, top to bottom: data, backbone, zero-shot, adapt, evaluate, record."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from so_clip.assemble import (
    Model,
    build_evaluator,
    build_model,
    build_optimizer,
    few_shot_batches,
)
from so_clip.data.batches import TrainBatches
from so_clip.data.gather import Data
from so_clip.device import describe
from so_clip.evaluate import Evaluator, Predictions
from so_clip.memory import PeakMemory
from so_clip.record import RunFolder, provenance, summary_table
from so_clip.settings import Settings
from so_clip.support import FewShotSupport
from so_clip.train import History, TrainingDiverged, train


@dataclass(frozen=True)
class Adaptation:
    """What it took: training's history, seconds, and how many trained entries were changed."""

    history: History
    train_seconds: float
    changed_parameters: int


def run(settings: Settings, data: Data) -> tuple[dict[str, Any], str]:
    """Do one run, leave its folder behind, and return its metrics and its table for people.

    Whatever is wrong with the input is found before the folder is created.

    Raises:
        InputError: something the user gave cannot be used.
        TrainingDiverged: a loss is not finite; what was recorded stays in the folder.
    """
    model = build_model(settings, data)
    evaluator = build_evaluator(settings, data, model)
    folder = RunFolder(settings.run_dir)
    optimizer = build_optimizer(settings, model) if settings.trains else None
    peak_memory = PeakMemory(model.classifier, optimizer, model.device)
    if settings.adapts:
        batches = few_shot_batches(settings, data, model)
        zero_shot = evaluator.zero_shot()
        folder.start(settings.as_dict(), data.few_shot.as_json() if data.few_shot else None)
        adaptation = adapt(settings, model, batches, optimizer, peak_memory, folder)
        adapted = evaluator.adapted()
    else:
        zero_shot = adapted = evaluator.zero_shot()
        adaptation = Adaptation(History(stop_reason="zero_shot"), 0.0, 0)
        folder.start(settings.as_dict(), None)
    if optimizer is None:
        evaluator.watch(peak_memory)
    folder.write_predictions(_prediction_columns(data, zero_shot, adapted))
    folder.write_provenance(
        provenance(
            describe(model.device),
            backbone=model.classifier.backbone.description,
            backbone_weights_sha256=model.weights_sha256,
            split_file=str(data.splits.file) if data.splits.file else None,
            split_file_sha256=data.splits.sha256,
        )
    )
    metrics = _metrics(
        settings, data, model, zero_shot, adapted, adaptation, evaluator, peak_memory.result()
    )
    table = summary(metrics, folder)
    folder.finish(metrics, table)
    return metrics, table


def adapt(
    settings: Settings,
    model: Model,
    batches: TrainBatches,
    optimizer: torch.optim.Optimizer | None,
    peak_memory: PeakMemory,
    folder: RunFolder,
) -> Adaptation:
    """Change the model with the few shots; write history.csv also if training fails."""
    adapter, classifier = model.adapter, model.classifier
    assert adapter is not None
    started = time.perf_counter()
    adapter.start(classifier, FewShotSupport(classifier, batches, model.precision, settings.seed))
    # On the host, so that the copy is no part of the device's peak.
    before = {name: value.detach().cpu().clone() for name, value in model.parameters.items()}
    history = History(stop_reason="training_free")
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
                after_step=partial(adapter.after_step, classifier),
            )
        except TrainingDiverged as error:
            folder.write_history(error.history.losses, error.history.lrs)
            raise
    adapter.finish(classifier)
    classifier.forget_classes()
    train_seconds = time.perf_counter() - started
    folder.write_history(history.losses, history.lrs)
    changed = sum(
        int((value.detach().cpu() != before[name]).sum())
        for name, value in model.parameters.items()
    )
    return Adaptation(history, train_seconds, changed)


def summary(metrics: Mapping[str, Any], folder: RunFolder) -> str:
    """Return the run's figures as a small table for people."""
    return summary_table(
        {
            "zero-shot accuracy": f"{metrics['zero_shot_accuracy_percent']:.2f} %",
            "adapted accuracy": f"{metrics['accuracy_percent']:.2f} %",
            "peak memory": f"{metrics['peak_memory_mib']:.1f} MiB",
            "training": f"{metrics['train_seconds']:.1f} s, {metrics['steps']} steps",
            "run folder": str(folder.path),
        }
    )


def _prediction_columns(
    data: Data, zero_shot: Predictions, adapted: Predictions
) -> dict[str, list[Any]]:
    return {
        "path": [example.path for example in data.splits.test],
        "label": adapted.label_N.tolist(),
        "zero_shot_prediction": zero_shot.predicted_N.tolist(),
        "zero_shot_confidence": zero_shot.confidence_N.tolist(),
        "prediction": adapted.predicted_N.tolist(),
        "confidence": adapted.confidence_N.tolist(),
    }


def _metrics(
    settings: Settings,
    data: Data,
    model: Model,
    zero_shot: Predictions,
    adapted: Predictions,
    adaptation: Adaptation,
    evaluator: Evaluator,
    memory: Mapping[str, float],
) -> dict[str, Any]:
    history = adaptation.history
    return {
        "dataset": settings.dataset,
        "backbone": settings.backbone["architecture"],
        "method": settings.method,
        "method_title": settings.method_title,
        "shots": settings.shots,
        "seed": settings.seed,
        "split_protocol": settings.split_protocol,
        "fewshot_sha256": data.few_shot.sha256 if data.few_shot else None,
        "split_sha256": data.splits.sha256,
        "fingerprint": settings.fingerprint,
        "zero_shot_accuracy_percent": zero_shot.accuracy_percent,
        "accuracy_percent": adapted.accuracy_percent,
        "test_images": len(data.splits.test),
        "evaluate_seconds": evaluator.seconds,
        "features_from_cache": evaluator.from_cache,
        **memory,
        "peak_memory_measures": _measures(settings, model),
        "train_seconds": adaptation.train_seconds,
        "steps": history.steps,
        "stop_reason": history.stop_reason,
        "final_loss": history.losses[-1] if history.losses else None,
        "trainable_parameters": sum(value.numel() for value in model.parameters.values()),
        "changed_parameters": adaptation.changed_parameters,
        "device": describe(model.device),
        "precision": model.precision.name,
        "evaluation_precision": evaluator.precision.name,
        "settings": settings.as_dict(),
    }


def _measures(settings: Settings, model: Model) -> str:
    phase = "the first training steps" if settings.trains else "the first batch of the test split"
    if model.device.type == "cuda":
        return f"peak of the CUDA allocator over {phase}"
    return f"peak of live tensor memory (weights and all that is made) over {phase}"
