"""The records of a run: metrics.json and provenance.json."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from so_clip.clip.backbone import Backbone
from so_clip.clip.engine.memory_record import memory_record
from so_clip.clip.loading.architecture_names import without_path
from so_clip.clip.pixels import preprocessing_of
from so_clip.config.settings import Settings
from so_clip.data.run_data import NEW_CLASSES, Data
from so_clip.evaluate.evaluator import Evaluator
from so_clip.fingerprint import prompts_sha256, settings_sha256
from so_clip.methods.model import Model
from so_clip.optim.sampled_record import sampled_record
from so_clip.results.logits_file import Validation
from so_clip.results.provenance import provenance
from so_clip.results.run_files import SKIPPED
from so_clip.results.run_folder import RunFolder
from so_clip.results.scores import ADAPTED, ZERO_SHOT, harmonic_mean
from so_clip.runtime.device import describe
from so_clip.runtime.peak_memory import peak_over
from so_clip.train import History
from so_clip.version import RESULTS_VERSION


@dataclass(frozen=True)
class Adaptation:
    """The course of an adaptation.

    Attributes:
        history: losses and learning rates of training.
        train_seconds: of the adaptation, without evaluation.
        changed_parameters: entries of the opened tensors that differ from their start.
        streamed: whether the training images were too large to keep decoded in memory.
        graph: "captured" if CUDA graphs held the training steps, or "eager: " and the reason.
    """

    history: History
    train_seconds: float
    changed_parameters: int
    streamed: bool = False
    graph: str = "eager: nothing is trained"


def write_provenance(
    folder: RunFolder,
    data: Data,
    backbone: Backbone,
    *,
    device: torch.device,
    weights_sha256: str,
    fingerprint: str,
    **more: Any,
) -> None:
    """Write skipped.csv and provenance.json.

    Args:
        folder, data, backbone, device, fingerprint: of the run.
        weights_sha256: of the backbone as loaded.
        more: values of provenance.json.
    """
    folder.write_skipped(data.skipped)
    folder.write_provenance(
        provenance(
            describe(device),
            backbone=backbone.description,
            backbone_weights_sha256=weights_sha256,
            backbone_pixels=preprocessing_of(backbone).record(),
            split_file=str(data.splits.file) if data.splits.file else None,
            split_file_sha256=data.splits.sha256,
            skipped_images=len(data.skipped),
            results_version=RESULTS_VERSION,
            run_fingerprint=fingerprint,
            **more,
        )
    )


def run_metrics(
    settings: Settings,
    data: Data,
    model: Model,
    *,
    scores: Mapping[str, Mapping[str, float | None]],
    adaptation: Adaptation,
    evaluators: Mapping[str, Evaluator],
    memory: Mapping[str, float],
    fingerprint: str,
    validation: Validation | None = None,
    validation_seconds: float = 0.0,
    processes: int = 1,
    adapter_mib: float | None = None,
    optimizer: Optimizer | None = None,
) -> dict[str, Any]:
    """Return the content of metrics.json.

    Args:
        settings, data, model: of the run.
        scores: of each test set, as write_outcomes returns them.
        adaptation: what training took.
        evaluators: of each test set, by the same names.
        memory: as PeakMemory returns it.
        fingerprint: of the run.
        validation: logits of the drawn validation images, if there are any.
        validation_seconds: spent on them.
        processes: that trained together.
        adapter_mib: size of the adapter file; None without one.
        optimizer: of the run; None if nothing is trained.
    """
    choice, history = settings.data, adaptation.history
    fewshot_sha256 = data.few_shot.sha256 if data.few_shot else None
    return {
        **run_identity(settings, data, fewshot_sha256, fingerprint),
        **scores[""],
        **(_base_to_new(scores) if choice.base_to_new else {}),
        **(_transfer(data, scores) if choice.transfer else {}),
        "tested_on": data.tested_on,
        "test_images": len(data.splits.test),
        **_skipped(data, data.splits.dataset),
        **_calibration(validation),
        "evaluate_seconds": validation_seconds
        + sum(evaluator.seconds for evaluator in evaluators.values()),
        "features_from_cache": all(evaluator.from_cache for evaluator in evaluators.values()),
        "images_from_cache": sum(evaluator.stream.from_cache for evaluator in evaluators.values()),
        **memory,
        "peak_memory_measures": measures(settings.trains, model.device, processes),
        "processes": processes,
        "train_seconds": adaptation.train_seconds,
        "steps": history.steps,
        "stop_reason": history.stop_reason,
        "graph": adaptation.graph,
        "training_images_streamed": adaptation.streamed,
        "final_loss": history.losses[-1] if history.losses else None,
        "trainable_parameters": sum(value.numel() for value in model.parameters.values()),
        "changed_parameters": adaptation.changed_parameters,
        "adapter_mib": adapter_mib,
        "device": describe(model.device),
        **memory_record(
            model.classifier.backbone.model, model.classifier.prompts, settings.placement.memory
        ),
        **sampled_record(optimizer, model.parameters.values()),
        "precision": model.precision.name,
        "evaluation_precision": evaluators[""].precision.name,
        "evaluation_batch_size": evaluators[""].stream.batch_size,
        "results_version": RESULTS_VERSION,
        "settings": settings.record(),
    }


def run_identity(
    settings: Settings, data: Data, fewshot_sha256: str | None, fingerprint: str
) -> dict[str, Any]:
    """Return what identifies a run in metrics.json."""
    choice = settings.data
    return {
        "dataset": choice.dataset,
        "backbone": without_path(settings.backbone.architecture),
        "method": settings.method.name,
        "method_title": settings.method.title,
        "shots": choice.shots,
        "seed": choice.seed,
        "split_protocol": choice.split_protocol,
        "protocol": choice.protocol,
        "imbalance": choice.imbalance,
        "fewshot_sha256": fewshot_sha256,
        "split_sha256": data.splits.sha256,
        "prompts_sha256": prompts_sha256(data, choice.template),
        "fingerprint": settings_sha256(settings),
        "run_fingerprint": fingerprint,
    }


def _skipped(data: Data, dataset: str) -> dict[str, int]:
    """Return how many corrupt images of one dataset the run left out, in training and in test."""
    counts = Counter(image.split for image in data.skipped if image.dataset == dataset)
    return {key: counts[split] for split, key in SKIPPED.items()}


def _calibration(validation: Validation | None) -> dict[str, Any]:
    """Return the temperatures of both models and the number of images that they are fitted on."""
    temperatures = validation.temperatures if validation else {}
    return {
        **{f"{prefix}temperature": temperatures.get(prefix) for prefix in (ZERO_SHOT, ADAPTED)},
        "calibrated_on": len(validation.label_V) if validation else 0,
    }


def _base_to_new(scores: Mapping[str, Mapping[str, float | None]]) -> dict[str, Any]:
    """Return base and new accuracy, their harmonic mean, and all scores of the new classes."""
    flat: dict[str, Any] = {}
    for prefix in (ZERO_SHOT, ADAPTED):
        base, new = (scores[name][f"{prefix}accuracy_percent"] for name in ("", NEW_CLASSES))
        flat[f"{prefix}base_accuracy_percent"] = base
        flat[f"{prefix}new_accuracy_percent"] = new
        both = None if base is None or new is None else harmonic_mean(base, new)
        flat[f"{prefix}harmonic_mean_percent"] = both
    return flat | {NEW_CLASSES: dict(scores[NEW_CLASSES])}


def _transfer(data: Data, scores: Mapping[str, Mapping[str, float | None]]) -> dict[str, Any]:
    """Return the scores of each other dataset, and their average accuracy."""
    test_sets = [test_set for test_set in data.others if test_set.name != NEW_CLASSES]
    average: dict[str, float | None] = {}
    for prefix in (ZERO_SHOT, ADAPTED):
        found = [scores[test_set.name][f"{prefix}accuracy_percent"] for test_set in test_sets]
        known = [accuracy for accuracy in found if accuracy is not None]
        mean = sum(known) / len(known) if known else None
        average[f"{prefix}transfer_accuracy_percent"] = mean
    by_dataset = {
        test_set.name: {
            **scores[test_set.name],
            "test_images": len(test_set.splits.test),
            SKIPPED["test"]: _skipped(data, test_set.splits.dataset)[SKIPPED["test"]],
            "classes": len(test_set.splits.class_names),
            "split_sha256": test_set.splits.sha256,
        }
        for test_set in test_sets
    }
    return average | {"transfer": by_dataset}


def measures(trains: bool, device: torch.device, processes: int) -> str:
    """Return what the peak memory of a run is, for people."""
    phase = "the first training steps" if trains else "the first batch of the test split"
    if processes > 1:
        phase += f", in the first of {processes} processes"
    return peak_over(phase, device)
