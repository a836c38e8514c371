"""Finished runs written by hand for the page and its plots, with all files that a run leaves."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write_run(
    root: Path,
    *,
    dataset: str = "digits",
    backbone: str = "tiny",
    method: str = "so",
    title: str = "SO",
    shots: int = 4,
    seed: int = 1,
    accuracy_percent: float = 80.0,
    peak_memory_mib: float = 40.0,
    class_names: Sequence[str] = DIGITS,
    test_images: int = 200,
    steps: int = 40,
    folder: str | None = None,
    **optimizer: Any,
) -> Path:
    """Write one run's folder: about `accuracy_percent` of its images are right."""
    seeds = [seed, shots, *map(ord, dataset + method)]
    generator = np.random.default_rng(seeds)
    name = folder or f"{dataset}-{backbone}-{method}-{shots}shot-seed{seed}"
    name += "".join(f"-{value}" for value in optimizer.values())
    place = root / name
    place.mkdir(parents=True)
    trained = method != "zero_shot"
    label = generator.integers(len(class_names), size=test_images)
    columns: dict[str, Any] = {
        "path": [f"digit_{index:04d}.png" for index in range(test_images)],
        "label": label,
    }
    for prefix, right in (("zero_shot_", 61.0), ("", accuracy_percent)):
        wrong = generator.random(test_images) * 100 > right
        shift = generator.integers(1, max(2, len(class_names)), size=test_images)
        columns[f"{prefix}prediction"] = (label + wrong * shift) % len(class_names)
        columns[f"{prefix}confidence"] = generator.beta(4, 2, size=test_images).round(4)
    _write_csv(place / "predictions.csv", columns, zip(*columns.values(), strict=True))
    per_class = []
    for number, text in enumerate(class_names):
        mine = label == number
        if mine.any():
            before, after = (
                100.0 * float((columns[key][mine] == number).mean())
                for key in ("zero_shot_prediction", "prediction")
            )
            per_class.append((number, text, int(mine.sum()), before, after))
    header = ("label", "name", "images", "zero_shot_accuracy_percent", "accuracy_percent")
    _write_csv(place / "per_class.csv", header, per_class)
    if trained:
        _write_training(place, generator, steps, accuracy_percent)
    settings = {
        "dataset": dataset,
        "split_file": None,
        "backbone": {"architecture": backbone, "pretrained": "embedded", "checkpoint": None},
        "method": method,
        "method_title": title,
        "adapter": {"_target_": "so_clip.adapt.weights.Weights", "seed": seed} if trained else None,
        "optimizer": {"_target_": "so_clip.SO", "lr": 2e-3, **optimizer} if trained else None,
        "schedule": {"batch_size": 32, "max_steps": steps},
        "shots": shots,
        "seed": seed,
        "protocol": "all",
        "imbalance": None,
        "transfer": [],
        "template": "plain",
        "data_root": "data",
        "results_dir": str(root),
    }
    metrics = {
        "dataset": dataset,
        "backbone": backbone,
        "method": method,
        "method_title": title,
        "shots": shots if trained else 0,
        "seed": seed if trained else 0,
        "protocol": "all",
        "imbalance": None,
        "split_sha256": "0" * 64,
        "zero_shot_accuracy_percent": 61.0,
        "zero_shot_mean_class_accuracy_percent": 60.5,
        "zero_shot_expected_calibration_error_percent": 6.9,
        "accuracy_percent": accuracy_percent,
        "mean_class_accuracy_percent": accuracy_percent - 0.4,
        "expected_calibration_error_percent": 5.0 + seed,
        "test_images": test_images,
        "evaluate_seconds": 1.5,
        "peak_memory_mib": peak_memory_mib,
        "train_seconds": 3.0 if trained else 0.0,
        "steps": steps if trained else 0,
        "stop_reason": "max_steps" if trained else "zero_shot",
        "final_loss": 0.4 if trained else None,
        "trainable_parameters": 5000 if trained else 0,
        "changed_parameters": 4000 if trained else 0,
        "device": "cpu",
        "precision": "fp32",
        "settings": settings,
    }
    provenance = {
        "command": ["so_clip", f"method={method}", f"shots={shots}", f"seed={seed}"],
        "finished_at": f"2026-11-22T12:{seed:02d}:{shots:02d}+00:00",
        "commit": "0" * 40,
        "versions": {"python": "3.11.7", "torch": "2.14.1"},
        "hardware": {"device": "cpu", "processor": "some processor"},
    }
    (place / "config.yaml").write_text(json.dumps(settings))
    (place / "provenance.json").write_text(json.dumps(provenance))
    (place / "metrics.json").write_text(json.dumps(metrics))
    return place


def _write_training(
    place: Path, generator: np.random.Generator, steps: int, accuracy_percent: float
) -> None:
    loss = 2 * np.exp(-np.arange(steps) / steps * 2) + generator.normal(0, 0.15, steps) ** 2 + 0.05
    rows = zip(range(1, steps + 1), loss.tolist(), [1e-3] * steps, strict=True)
    _write_csv(place / "history.csv", ("step", "loss", "lr"), rows)
    at = np.linspace(0, 1, 6)
    curve = (accuracy_percent - 61.0) * (1 - np.exp(-3 * at)) + 61.0
    rows = zip((at * steps).round().astype(int).tolist(), curve.tolist(), strict=True)
    _write_csv(place / "curve.csv", ("step", "accuracy_percent"), rows)
    tensors = [
        (f"{tower}transformer.resblocks.{layer}.{kind}.weight", 4096, generator.integers(80, 900))
        for tower in ("visual.", "")
        for layer in range(4)
        for kind in ("attn.in_proj", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    _write_csv(place / "changed.csv", ("tensor", "parameters", "changed"), tensors)


def _write_csv(path: Path, header: Iterable[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
