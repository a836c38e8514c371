"""Made run folders of runs on sentences, with all files that tables, tests and the page read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from so_clip.results.interval import wilson
from so_clip.results.run_files import CHANGED_COLUMNS
from tests.helpers.page_runs import write_csv

NAMES = ("entailment", "not_entailment")
ITEMS, MAJORITY = 277, 146
# Values of metrics.json that are the same for all made runs.
_MEASURED = {
    "peak_memory_mib": 400.0,
    "train_seconds": 30.0,
    "stop_reason": "stop_loss",
    "final_loss": 0.0009,
    "trainable_parameters": 1000,
    "changed_parameters": 100,
    "tested_on": "test",
    "test_images": ITEMS,
    "truncated_train": 0,
    "truncated_test": 0,
    "split_protocol": None,
}


def write_sentence_run(
    root: Path,
    *,
    method: str = "so",
    title: str = "SO",
    seed: int = 1,
    right: int = 150,
    first: int = 0,
    steps: int = 40,
    shots: int = 32,
    subset: str = "balanced",
    model: str = "minilm",
    dataset: str = "rte",
    adapter: dict[str, Any] | None = None,
    model_options: dict[str, Any] | None = None,
    optimizer: dict[str, Any] | None = None,
    overrides: Sequence[str] = (),
    **metrics: Any,
) -> Path:
    """Write one finished run on RTE; return its folder.

    Args:
        right: the number of right predictions of the 277 test examples.
        first: the first of these examples; the others follow it.
        adapter, model_options, optimizer: options of these groups.
        overrides: of provenance.json; by default made from the method and the seed.
        metrics: further or other values of metrics.json.
    """
    optimizer = {"name": "so", "lr": 2e-5} | (optimizer or {})
    parts = [f"{value}" for value in ((adapter or {}) | optimizer).values()]
    name = "-".join([dataset, model, method, subset, f"{shots}shot", f"seed{seed}", *parts])
    folder = root / name
    folder.mkdir(parents=True)
    known = {
        "task": "sentences",
        "dataset": dataset,
        "method": method,
        "method_title": title,
        "shots": shots,
        "subset": subset,
        "seed": seed,
    }
    settings = known | {
        "model": {"name": model, "source": "folder:x", "token_types": True, "max_length": 128}
        | (model_options or {}),
        "adapter": {"name": "weights", "seed": seed} | (adapter or {}),
        "optimizer": optimizer | {"seed": seed},
        "schedule": {"batch_size": 8, "max_steps": 10_000, "stop_on": "batch"},
        "results_dir": str(root),
    }
    low, high = wilson(right, ITEMS)
    values = known | {
        "backbone": model,
        "accuracy_percent": 100 * right / ITEMS,
        "accuracy_low_percent": low,
        "accuracy_high_percent": high,
        "majority_percent": 100 * MAJORITY / ITEMS,
        "expected_calibration_error_percent": 20.0 + seed,
        "steps": steps,
        "settings": settings,
        **_MEASURED,
    }
    provenance = {
        "overrides": [*overrides] or ["dataset=rte", f"method={method}", f"seed={seed}"],
        "finished_at": f"2026-11-30T18:{seed:02d}:00+00:00",
        "versions": {"torch": "2.14.1"},
        "hardware": {"device": "cpu", "processor": "some processor"},
    }
    rows = range(100, 100 + shots)
    draw = {"rows": [*rows], "labels": [row % 2 for row in rows], "subset": subset, "seed": seed}
    for file, content in (
        ("config.yaml", settings),  # JSON is YAML
        ("provenance.json", provenance),
        ("fewshot.json", draw),
        ("metrics.json", values | metrics),
    ):
        (folder / file).write_text(json.dumps(content))
    write_answers(folder, [first <= (row - first) % ITEMS + first < first + right for row in _ROWS])
    _write_training(folder, steps)
    return folder


def _write_training(folder: Path, steps: int) -> None:
    """Write history.csv and changed.csv."""
    losses = np.exp(-np.arange(steps) / steps * 6)
    table = ((step + 1, loss, 2e-5) for step, loss in enumerate(losses.tolist()))
    write_csv(folder / "history.csv", ("step", "loss", "lr"), table)
    changed = [
        (f"encoder.layer.{block}.{role}", 4096, 40 + block, "text", block, role)
        for block in range(3)
        for role in ("query", "attention_out", "mlp_in", "mlp_out")
    ]
    changed += [
        (f"encoder.layer.{block}.bias", 64, 64, "text", block, "bias") for block in range(3)
    ]
    write_csv(folder / "changed.csv", CHANGED_COLUMNS, changed)


_ROWS = range(ITEMS)


def write_answers(folder: Path, right: list[bool], rows: list[int] | None = None) -> None:
    """Write predictions.csv and per_class.csv; rows with an even number are of class 0."""
    rows = [*range(len(right))] if rows is None else rows
    lines, counts = [], [[0, 0], [0, 0]]
    for row, is_right in zip(rows, right, strict=True):
        label = row % 2
        guess = label if is_right else 1 - label
        counts[label][0] += 1
        counts[label][1] += is_right
        lines.append((row, label, NAMES[label], guess, NAMES[guess], 0.5 + (row % 50) / 100))
    header = ("row", "label", "label_name", "prediction", "prediction_name", "confidence")
    write_csv(folder / "predictions.csv", header, lines)
    header = ("label", "name", "images", "accuracy_percent")
    table = (
        (label, NAMES[label], images, 100 * share / images)
        for label, (images, share) in enumerate(counts)
    )
    write_csv(folder / "per_class.csv", header, table)


def write_sentence_grid(root: Path, seeds: tuple[int, ...] = (1, 2, 3)) -> None:
    """Write SO at three densities and two T, LoRA at two ranks, and dense training."""
    for seed in seeds:
        for number, kappa in enumerate((1e-3, 1e-4, 1e-5)):
            for interval in (5, 10):
                write_sentence_run(
                    root,
                    seed=seed,
                    right=150 + 2 * number + seed,
                    first=3 * seed + number,
                    optimizer={"density_ratio": kappa, "T": interval},
                )
        for rank in (2, 8):
            write_sentence_run(
                root,
                method="lora",
                title="LoRA",
                seed=seed,
                right=147 + rank + seed,
                first=2 * seed,
                adapter={"name": "lora", "rank": rank},
                optimizer={"name": "adam"},
            )
        write_sentence_run(
            root, method="adamw", title="AdamW (dense)", seed=seed, right=160, first=seed
        )
