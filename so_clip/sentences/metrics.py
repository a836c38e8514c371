"""The content of metrics.json and predictions.csv for a run on sentences."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from so_clip.config.sentence_settings import SentenceSettings
from so_clip.data.sentences.read import SentenceData
from so_clip.evaluate.evaluator import Predictions
from so_clip.methods.model import Model
from so_clip.metrics import Adaptation, measures
from so_clip.optim.sampled_record import sampled_record
from so_clip.results.interval import wilson
from so_clip.results.scores import SENTENCES, scores
from so_clip.runtime.device import describe
from so_clip.sentences.build import TokenizedData
from so_clip.sentences.identity import settings_sha256
from so_clip.version import RESULTS_VERSION


def prediction_columns(data: SentenceData, predictions: Predictions) -> dict[str, list[Any]]:
    """Return the columns of predictions.csv; `row` is the place in the dataset's file, from 0."""
    names = data.card.label_names
    labels, predicted = predictions.label_N.tolist(), predictions.predicted_N.tolist()
    return {
        "row": [pair.row for pair in data.test],
        "label": labels,
        "label_name": [names[label] for label in labels],
        "prediction": predicted,
        "prediction_name": [names[label] for label in predicted],
        "confidence": predictions.confidence_N.tolist(),
    }


def sentence_metrics(
    settings: SentenceSettings,
    data: SentenceData,
    model: Model,
    *,
    columns: Mapping[str, list[Any]],
    tokens: TokenizedData,
    adaptation: Adaptation,
    evaluate_seconds: float,
    memory: Mapping[str, float],
    fingerprint: str,
    optimizer: Optimizer | None,
    saved_mib: float | None,
) -> dict[str, Any]:
    """Return the content of metrics.json for a run on sentences.

    Args:
        settings, data, model: of the run.
        columns: of predictions.csv.
        tokens: the examples as token ids, with the number of examples that were cut.
        adaptation: what training took.
        evaluate_seconds: spent on test examples.
        memory: as PeakMemory returns it.
        fingerprint: of the run.
        optimizer: of the run.
        saved_mib: size of the saved model; None if none is saved.
    """
    history, draw = adaptation.history, data.draw_json()
    found = {key: value for key, value in scores(columns).items() if value is not None}
    labels = columns["label"]
    right = sum(map(int.__eq__, labels, columns["prediction"]))
    low, high = wilson(right, len(labels))
    return {
        **_identity(settings, draw["sha256"], data.contents_sha256, fingerprint),
        **found,
        "accuracy_low_percent": low,
        "accuracy_high_percent": high,
        "majority_percent": 100.0 * max(Counter(labels).values()) / len(labels),
        "tested_on": data.tested_on,
        "test_images": len(labels),
        "truncated_train": tokens.train.truncated,
        "truncated_test": tokens.test.truncated,
        "evaluate_seconds": evaluate_seconds,
        **memory,
        "peak_memory_measures": measures(settings.trains, model.device, 1),
        "processes": 1,
        "train_seconds": adaptation.train_seconds,
        "steps": history.steps,
        "stop_reason": history.stop_reason,
        "graph": adaptation.graph,
        "final_loss": history.losses[-1] if history.losses else None,
        "trainable_parameters": sum(value.numel() for value in model.parameters.values()),
        "dense_parameters": sum(model.parameters[name].numel() for name in model.dense),
        "changed_parameters": adaptation.changed_parameters,
        "adapter_mib": None,
        "model_mib": saved_mib,
        "encoder": model.classifier.backbone.description,
        "device": describe(model.device),
        **sampled_record(optimizer, model.parameters.values()),
        "precision": model.precision.name,
        "results_version": RESULTS_VERSION,
        "settings": settings.record(),
    }


def _identity(
    settings: SentenceSettings, draw_sha256: str, contents_sha256: str, fingerprint: str
) -> dict[str, Any]:
    """Return what identifies a run in metrics.json; `shots` are training examples in all."""
    choice = settings.data
    return {
        "task": SENTENCES,
        "dataset": choice.dataset,
        "backbone": settings.model.name,
        "method": settings.method.name,
        "method_title": settings.method.title,
        "shots": choice.shots,
        "subset": choice.subset,
        "seed": choice.seed,
        "split_protocol": None,
        "fewshot_sha256": draw_sha256,
        "split_sha256": contents_sha256,
        "fingerprint": settings_sha256(settings),
        "run_fingerprint": fingerprint,
    }
