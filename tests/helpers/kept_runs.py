"""Run folders with kept logits, made without a model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from so_clip.results.logits_file import KeptLogits, ModelLogits, Validation, logits_file

IMAGES, DRAWN, CLASSES = 60, 24, 7
MODELS = ("zero_shot_", "")


def logits_of(generator: np.random.Generator, label_N: Any, gain: float, classes: int) -> Any:
    """Return logits that favour the label, in the form in which they are kept."""
    logits_NK = generator.normal(0, 2, (len(label_N), classes))
    logits_NK[range(len(label_N)), label_N] += gain
    top_N = logits_NK.argmax(axis=1)
    logits_NK = np.minimum(logits_NK - logits_NK.max(axis=1, keepdims=True), -(2.0**-14))
    logits_NK[range(len(label_N)), top_N] = 0
    return logits_NK.astype(np.float16)


def model_of(generator: np.random.Generator, label_N: Any, gain: float, classes: int) -> Any:
    logits_NK = logits_of(generator, label_N, gain, classes)
    rank_N = (logits_NK > np.take_along_axis(logits_NK, label_N[:, None], axis=1)).sum(axis=1)
    confidence_N = 1 / np.exp(logits_NK.astype(np.float64)).sum(axis=1)
    return ModelLogits(logits_NK, confidence_N.astype(np.float32), rank_N)


def write_kept(
    folder: Path,
    fingerprint: str,
    seed: int,
    test_set: str = "",
    models: Sequence[str] = MODELS,
    classes: int = CLASSES,
    images: str = "0",
) -> None:
    """Write the kept logits of a test set and its per_class.csv."""
    same, generator = np.random.default_rng(0), np.random.default_rng(seed)
    label_N, label_V = (same.integers(0, classes, count) for count in (IMAGES, DRAWN))
    validation = Validation(
        label_V, {name: logits_of(generator, label_V, 2, classes) for name in models}
    )
    adapts = "" in models
    kept = KeptLogits(
        label_N,
        {name: model_of(generator, label_N, 1 if name else 3, classes) for name in models},
        validation.temperatures if adapts else {},
        DRAWN if adapts else 0,
        images,
        fingerprint,
        validation if adapts and not test_set else None,
    )
    (folder / logits_file(test_set)).write_bytes(kept.to_bytes())
    counts = np.bincount(label_N, minlength=classes)
    rows = "".join(f"{label},class {label},{count}\n" for label, count in enumerate(counts))
    name = f"per_class_{test_set}.csv" if test_set else "per_class.csv"
    (folder / name).write_text(f"label,name,images\n{rows}")


def write_kept_run(place: Path, seed: int = 1, method: str = "so", **more: Any) -> Path:
    """Write a finished run with kept logits; return its folder.

    Args:
        place: the folder of runs.
        seed, method: of the run.
        more: arguments of write_kept.
    """
    folder = place / f"pets-tiny-{method}-4shot-seed{seed}"
    folder.mkdir(parents=True)
    fingerprint = f"{method}{seed}"
    metrics = {
        "dataset": "pets",
        "backbone": "tiny",
        "method": method,
        "method_title": method.upper(),
        "shots": 4,
        "seed": seed,
        "accuracy_percent": 50.0,
        "peak_memory_mib": 10.0,
        "settings": {"seed": seed, "method": method},
        "run_fingerprint": fingerprint,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    write_kept(folder, fingerprint, seed, **more)
    return folder
