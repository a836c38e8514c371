"""Made run folders with the files that tables and significance read."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PAPER = (
    "imagenet",
    "sun397",
    "fgvc",
    "eurosat",
    "stanford_cars",
    "food101",
    "oxford_pets",
    "oxford_flowers",
    "caltech101",
    "dtd",
    "ucf101",
)
VIT = {"architecture": "ViT-B-16-quickgelu", "pretrained": "openai", "checkpoint": None}


def write_run(root: Path, name: str, /, **changes: Any) -> Path:
    """Write one finished run; keyword arguments replace values, `a__b` the option `a.b`."""
    settings: dict[str, Any] = {
        "dataset": "digits",
        "split_file": None,
        "backbone": {"architecture": "tiny", "pretrained": "embedded", "checkpoint": None},
        "adapter": {"rank": 2, "seed": changes.get("seed", 1)},
        "optimizer": {"lr": 2e-4, "density_ratio": 5e-4, "seed": changes.get("seed", 1)},
        "schedule": {"max_steps": 2000},
        "data_root": "data",
        "results_dir": str(root),
        "evaluation": {"batch_size": 256},
        "precision": "fp32",
        "protocol": "all",
        "transfer": [],
        "imbalance": None,
        "threads": 1,
    }
    for key in [key for key in changes if "__" in key]:
        group, _, option = key.partition("__")
        settings[group] = settings[group] | {option: changes.pop(key)}
    settings |= {
        key: changes.pop(key)
        for key in list(changes)
        if key in settings and key not in ("dataset", "transfer", "protocol", "imbalance")
    }
    settings["protocol"] = changes.get("protocol", "all")
    settings["imbalance"] = changes.get("imbalance")
    metrics: dict[str, Any] = {
        "dataset": "digits",
        "backbone": settings["backbone"]["architecture"],
        "method": "so",
        "method_title": "SO",
        "shots": 4,
        "seed": 1,
        "split_sha256": None,
        "accuracy_percent": 50.0,
        "peak_memory_mib": 10.0,
        "settings": settings,
    }
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("{}\n")
    (folder / "metrics.json").write_text(json.dumps(metrics | changes))
    return folder


def write_grid(
    root: Path,
    datasets: Sequence[str] = ("dtd", "eurosat"),
    methods: Sequence[str] = ("so", "clip_lora"),
    seeds: Sequence[int] = (1, 2, 3),
    **changes: Any,
) -> dict[tuple[str, str, int], Path]:
    """Write one run per combination, with different accuracies."""
    titles = {"so": "SO", "clip_lora": "CLIP-LoRA", "adamw": "AdamW"}
    folders = {}
    for m, method in enumerate(methods):
        for d, dataset in enumerate(datasets):
            for seed in seeds:
                folders[method, dataset, seed] = write_run(
                    root,
                    f"{dataset}-{method}-{changes.get('shots', 4)}-{seed}",
                    dataset=dataset,
                    method=method,
                    method_title=titles.get(method, method),
                    seed=seed,
                    accuracy_percent=50.0 + 10 * m + d + seed**2 / 10,
                    **changes,
                )
    return folders


def write_provenance(folder: Path, **changes: Any) -> None:
    """Write a run's provenance.json."""
    values: dict[str, Any] = {
        "overrides": ["method=so"],
        "finished_at": "2026-11-22T12:00:00+00:00",
        "commit": "a" * 40,
        "versions": {"python": "3.11.7", "torch": "2.14.1"},
        "hardware": {"device": "cpu", "processor": "some processor"},
        "backbone_weights_sha256": "b" * 64,
    }
    (folder / "provenance.json").write_text(json.dumps(values | changes))


def write_predictions(
    folder: Path,
    right: Sequence[bool],
    before: Sequence[bool] | None = None,
    paths: Sequence[str] | None = None,
) -> None:
    """Write predictions.csv for images of class 0; wrong predictions are class 1."""
    before = [True] * len(right) if before is None else before
    paths = [f"{at}.png" for at in range(len(right))] if paths is None else paths
    lines = [
        f"{path},0,{int(not zero_shot)},0.9,{int(not adapted)},0.8"
        for path, zero_shot, adapted in zip(paths, before, right, strict=True)
    ]
    header = "path,label,zero_shot_prediction,zero_shot_confidence,prediction,confidence"
    (folder / "predictions.csv").write_text("\n".join([header, *lines]) + "\n")


def squeezed(text: str) -> str:
    """Return a Markdown table with single spaces, without the padding of its columns."""
    return re.sub(" +", " ", text)
