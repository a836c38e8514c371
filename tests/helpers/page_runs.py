"""Made run folders with all files of a run, for the page and its plots."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from so_clip.results.run_files import CHANGED_COLUMNS

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ZERO_SHOT_PERCENT = 61.0
NASTY = '</script><b id="nasty">x</b>'  # text that would break a page as markup


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
    paths: Sequence[str] | None = None,
    test_images: int = 200,
    steps: int = 40,
    folder: str | None = None,
    data_root: str = "data",
    **optimizer: Any,
) -> Path:
    """Write one run's folder; about `accuracy_percent` of its predictions are correct.

    Args:
        root: the folder of all runs.
        paths: the paths of the test images; by default those of digits.
        folder: the name of the run's folder; by default made from its settings.
        optimizer: the optimizer's settings.
    """
    trained = method != "zero_shot"
    generator = np.random.default_rng([seed, shots, *map(ord, dataset + method)])
    name = folder or f"{dataset}-{backbone}-{method}-{shots}shot-seed{seed}"
    place = root / (name + "".join(f"-{value}" for value in optimizer.values()))
    place.mkdir(parents=True)
    _write_predictions(place, generator, accuracy_percent, class_names, test_images, paths)
    if trained:
        _write_training(place, generator, steps, accuracy_percent)
    same = {"dataset": dataset, "method": method, "method_title": title, "protocol": "all"}
    same |= {"shots": shots * trained, "seed": seed * trained, "imbalance": None}
    places = {"data_root": data_root, "results_dir": str(root)}
    settings = same | places | _settings(backbone, seed, trained, steps, optimizer)
    metrics = same | {
        "backbone": backbone,
        "split_sha256": "0" * 64,
        "zero_shot_accuracy_percent": ZERO_SHOT_PERCENT,
        "accuracy_percent": accuracy_percent,
        "expected_calibration_error_percent": 5.0 + seed,
        "peak_memory_mib": peak_memory_mib,
        "train_seconds": 3.0 * trained,
        "steps": steps * trained,
        "settings": settings,
    }
    files = {"config.yaml": settings, "metrics.json": metrics}  # JSON is YAML
    for file, values in (files | {"provenance.json": _provenance(method, shots, seed)}).items():
        (place / file).write_text(json.dumps(values))
    return place


def _settings(
    backbone: str, seed: int, trained: bool, steps: int, optimizer: dict[str, Any]
) -> dict[str, Any]:
    return {
        "backbone": {"architecture": backbone, "pretrained": "embedded", "checkpoint": None},
        "adapter": {"name": "weights", "seed": seed} if trained else None,
        "optimizer": {"name": "so", "lr": 2e-3, **optimizer} if trained else None,
        "schedule": {"batch_size": 32, "max_steps": steps},
        "transfer": [],
    }


def _provenance(method: str, shots: int, seed: int) -> dict[str, Any]:
    overrides = [f"method={method}", f"shots={shots}", f"seed={seed}"]
    return {
        "command": ["so_clip", *overrides],
        "overrides": overrides,
        "finished_at": f"2026-11-22T12:{seed:02d}:{shots:02d}+00:00",
        "versions": {"python": "3.11.7", "torch": "2.14.1"},
        "hardware": {"device": "cpu", "processor": "some processor"},
    }


def _write_predictions(
    place: Path,
    generator: np.random.Generator,
    accuracy_percent: float,
    class_names: Sequence[str],
    test_images: int,
    paths: Sequence[str] | None,
) -> None:
    count = len(class_names)
    label = generator.integers(count, size=test_images)
    columns: dict[str, Any] = {
        "path": paths or [f"digit_{index:04d}.png" for index in range(test_images)],
        "label": label,
    }
    for prefix, right in (("zero_shot_", ZERO_SHOT_PERCENT), ("", accuracy_percent)):
        wrong = generator.random(test_images) * 100 > right
        shift = generator.integers(1, max(2, count), size=test_images)
        columns[f"{prefix}prediction"] = (label + wrong * shift) % count
        columns[f"{prefix}confidence"] = generator.beta(4, 2, size=test_images).round(4)
    write_csv(place / "predictions.csv", columns, zip(*columns.values(), strict=True))
    rows = []
    for number, text in enumerate(class_names):
        is_class = label == number
        shares: list[Any] = ["", ""]  # a class without images
        if is_class.any():
            shares = [
                100.0 * float((columns[key][is_class] == number).mean())
                for key in ("zero_shot_prediction", "prediction")
            ]
        rows.append((number, text, int(is_class.sum()), *shares))
    header = ("label", "name", "images", "zero_shot_accuracy_percent", "accuracy_percent")
    write_csv(place / "per_class.csv", header, rows)


def _write_training(
    place: Path, generator: np.random.Generator, steps: int, accuracy_percent: float
) -> None:
    loss = 2 * np.exp(-np.arange(steps) / steps * 2) + generator.normal(0, 0.15, steps) ** 2 + 0.05
    rows: Iterable[Sequence[Any]] = zip(
        range(1, steps + 1), loss.tolist(), [1e-3] * steps, strict=True
    )
    write_csv(place / "history.csv", ("step", "loss", "lr"), rows)
    at = np.linspace(0, 1, 6)
    curve = ZERO_SHOT_PERCENT + (accuracy_percent - ZERO_SHOT_PERCENT) * (1 - np.exp(-3 * at))
    rows = zip((at * steps).round().astype(int).tolist(), curve.tolist(), strict=True)
    write_csv(place / "curve.csv", ("step", "accuracy_percent"), rows)
    rows = [
        (f"{tower}.{layer}.{role}", 4096, generator.integers(80, 900), tower, layer, role)
        for tower in ("vision", "text")
        for layer in range(4)
        for role in ("attention_in", "attention_out", "mlp_in", "mlp_out")
    ]
    write_csv(place / "changed.csv", CHANGED_COLUMNS, rows)


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write one of a run's CSV files."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
