"""One run, top to bottom: data, backbone, zero-shot, adapt, evaluate, record."""

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn

from so_clip.clip.backbone import Backbone, load_backbone
from so_clip.clip.blocks import Memory
from so_clip.clip.classifier import Classifier
from so_clip.clip.prompts import class_prompts
from so_clip.data.batches import TestStream, TrainBatches
from so_clip.data.gather import Data
from so_clip.data.images import load_uint8
from so_clip.device import describe, pick_device
from so_clip.errors import InputError, nearest
from so_clip.evaluate import Evaluator, Predictions
from so_clip.features import FeatureCache
from so_clip.memory import PeakMemory
from so_clip.optim.sampled import sampled_gradients
from so_clip.precision import Precision
from so_clip.record import RunFolder, provenance, summary_table
from so_clip.settings import TEMPLATES, Settings
from so_clip.train import History, TrainingDiverged, train


@dataclass(frozen=True)
class Model:
    """A classifier on its device, and the parameters of it that an adapter opened, by name."""

    classifier: Classifier
    parameters: dict[str, nn.Parameter]
    device: torch.device
    precision: Precision
    weights_sha256: str


@dataclass(frozen=True)
class Adaptation:
    """What training did: its history, its length in seconds, and how many entries it changed."""

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
    if settings.trains:
        optimizer = build_optimizer(settings, model)
        batches = few_shot_batches(settings, data, model)
        zero_shot = evaluator.zero_shot()
        folder.start(settings.as_dict(), data.few_shot.as_json() if data.few_shot else None)
        peak_memory = PeakMemory(model.classifier, optimizer, model.device)
        adaptation = adapt(settings, model, batches, optimizer, peak_memory, folder)
        adapted = evaluator.adapted()
    else:
        peak_memory = PeakMemory(model.classifier, None, model.device)
        evaluator.watch(peak_memory)
        zero_shot = adapted = evaluator.zero_shot()
        adaptation = Adaptation(History(stop_reason="zero_shot"), 0.0, 0)
        folder.start(settings.as_dict(), None)
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


def build_model(settings: Settings, data: Data) -> Model:
    """Load the backbone, and make it the model that the settings describe."""
    device = pick_device(settings.device)
    backbone = load_backbone(**settings.backbone, seed=settings.seed)
    weights_sha256 = backbone.weights_sha256
    names, templates = data.splits.class_names, data.card.templates
    return assemble_model(settings, backbone, names, templates, device, weights_sha256)


def assemble_model(
    settings: Settings,
    backbone: Backbone,
    class_names: Sequence[str],
    templates: Mapping[str, str],
    device: torch.device,
    weights_sha256: str,
) -> Model:
    """Tokenise the class prompts, move to the device, and let the adapter open its parameters."""
    template = settings.template
    if template in TEMPLATES:
        template = templates[template]
    tokens_KL = backbone.tokenize(class_prompts(class_names, template))
    backbone.memory = cast(Memory, settings.memory)
    classifier = Classifier(backbone, tokens_KL, settings.text_budget_mib)
    if device.type != "cpu":  # where it is already, and where fake tensors are, which cannot move
        classifier = classifier.to(device)
    parameters = _instantiate("adapter", settings.adapter)(classifier)
    return Model(
        classifier, parameters, device, Precision(settings.precision, device), weights_sha256
    )


def build_optimizer(settings: Settings, model: Model) -> torch.optim.Optimizer:
    """Make the optimizer over the adapter's parameters; its own refusals become InputError.

    Its option `sampled_gradients` is the model's to obey: it never reaches the constructor.
    """
    assert settings.optimizer is not None
    if not model.parameters:
        raise InputError(
            "the adapter opens no parameters, so the optimizer has nothing to train. "
            "Choose adapter=weights, or method=zero_shot to train nothing."
        )
    options = dict(settings.optimizer)
    sampled = options.pop("sampled_gradients", False)
    make = _instantiate("optimizer", options)
    _refuse_foreign_options(make)
    try:
        optimizer = make(list(model.parameters.values()))
        if sampled:
            sampled_gradients(model.classifier, optimizer, always=sampled is True)
    except (TypeError, ValueError) as error:
        raise InputError(f"optimizer: {error}") from error
    return optimizer


def _refuse_foreign_options(make: partial[torch.optim.Optimizer]) -> None:
    """Name options that belong to another optimizer, as an experiment may have set them."""
    takes = inspect.signature(make.func).parameters
    for key, value in make.keywords.items():
        if key not in takes:
            raise InputError(
                f"optimizer.{key}={value}: {make.func.__name__} has no such option. Leave it out, "
                f"or drop it with '~optimizer.{key}' where an experiment sets it."
                f"{nearest(key, takes)}"
            )


def few_shot_batches(settings: Settings, data: Data, model: Model) -> TrainBatches:
    """Decode the few shots into memory and set up their crops and order."""
    assert data.few_shot is not None
    examples = data.few_shot.train
    return TrainBatches(
        load_uint8(data.images, examples),
        [example.label for example in examples],
        settings.schedule.batch_size,
        model.classifier.backbone.image_size,
        torch.Generator().manual_seed(settings.seed),
        model.device,
        scale=settings.augment.scale,
        flip=settings.augment.flip,
    )


def build_evaluator(settings: Settings, data: Data, model: Model) -> Evaluator:
    """Set up what classifies the test split, and where features of its images are kept."""
    options = settings.evaluation
    return Evaluator(
        model.classifier,
        model.weights_sha256,
        TestStream(
            data.images,
            data.splits.test,
            model.classifier.backbone.image_size,
            options.batch_size,
            options.workers,
            pin=model.device.type == "cuda",
        ),
        model.device,
        Precision(settings.evaluation_precision, model.device),
        FeatureCache(options.cache_dir) if options.cache_dir else None,
    )


def adapt(
    settings: Settings,
    model: Model,
    batches: TrainBatches,
    optimizer: torch.optim.Optimizer,
    peak_memory: PeakMemory,
    folder: RunFolder,
) -> Adaptation:
    """Train, and write history.csv whether or not training reaches its end."""
    # On the host, so that the copy is no part of the device's peak.
    before = {name: value.detach().cpu().clone() for name, value in model.parameters.items()}
    started = time.perf_counter()
    try:
        history = train(
            model.classifier,
            batches,
            optimizer,
            max_steps=settings.schedule.max_steps,
            stop_loss=settings.schedule.stop_loss,
            lr_min=settings.schedule.lr_min,
            precision=model.precision,
            peak_memory=peak_memory,
        )
    except TrainingDiverged as error:
        folder.write_history(error.history.losses, error.history.lrs)
        raise
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


def _instantiate(group: str, spec: Mapping[str, Any]) -> Any:
    try:
        return instantiate(spec, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, InputError):
            raise cause from None
        raise InputError(f"{group}: {cause or error}") from error


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
