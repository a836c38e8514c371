"""The records of a finished meta-training: metrics.json, masks.csv, provenance.json, summary."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from so_clip.clip.backbone import Backbone
from so_clip.clip.loading.architecture_names import without_path
from so_clip.clip.pixels import preprocessing_of
from so_clip.fingerprint import Base
from so_clip.meta.records import TestRecords, TrainingRecords, accuracy_rows
from so_clip.meta.settings import MetaSettings
from so_clip.meta.tasks import MetaTasks
from so_clip.meta.train import WATCHED_TASKS
from so_clip.results.provenance import provenance
from so_clip.results.run_files import KIND, META, SMAT_FILE
from so_clip.results.run_folder import RunFolder
from so_clip.results.summary import summary_table
from so_clip.runtime.device import describe
from so_clip.runtime.peak_memory import peak_over
from so_clip.smat.checkpoint_file import SavedSmat
from so_clip.smat.direct import FROZEN
from so_clip.smat.model import Smat
from so_clip.smat.placement import MaskRow, OverlapRow, mask_rows, overlap_rows
from so_clip.version import RESULTS_VERSION

MASKS_FILE, OVERLAP_FILE = "masks.csv", "overlap.csv"
_MIB = 2**20


@dataclass(frozen=True)
class Outcome:
    """A meta-training after its test.

    Attributes:
        settings, tasks, backbone, base, fingerprint, device: of the run.
        precision: of the image tower.
        saved: the chosen state.
        records, tests: what training, validation and test measured.
        memory: as PeakMemory returns it.
        train_seconds: spent on training, without validation.
    """

    settings: MetaSettings
    tasks: MetaTasks
    backbone: Backbone
    base: Base
    fingerprint: str
    device: torch.device
    precision: str
    saved: SavedSmat
    records: TrainingRecords
    tests: TestRecords
    memory: Mapping[str, float]
    train_seconds: float


def write_masks(folder: RunFolder, smat: Smat) -> None:
    """Write masks.csv (a row for each expert and tensor) and overlap.csv (for each pair)."""
    folder.write_rows(MASKS_FILE, MaskRow._fields, mask_rows(smat))
    folder.write_rows(OVERLAP_FILE, OverlapRow._fields, overlap_rows(smat))


def write_provenance(folder: RunFolder, run: Outcome) -> None:
    """Write provenance.json."""
    backbone = run.backbone
    datasets = {
        source.name: {"split_file": str(source.splits.file), "sha256": source.splits.sha256}
        for source in run.tasks.datasets
    }
    folder.write_provenance(
        provenance(
            describe(run.device),
            backbone=backbone.description,
            backbone_weights_sha256=run.base.weights_sha256,
            backbone_pixels=preprocessing_of(backbone).record(),
            datasets=datasets,
            results_version=RESULTS_VERSION,
            run_fingerprint=run.fingerprint,
            overrides=folder.overrides,
        )
    )


def meta_metrics(run: Outcome, folder: RunFolder) -> dict[str, Any]:
    """Return the content of metrics.json."""
    settings, saved, experts = run.settings, run.saved, run.saved.smat.experts
    chosen = saved.about["tasks"]
    head = settings.training.head
    rows = [row for row in run.records.validation if row[0] == chosen]
    validation = _nested([row[1:] for row in rows])
    of_head = [row[3] for row in rows if row[2] == head]
    router = sum(value.numel() for value in saved.smat.router.parameters())
    logits = experts.logits_per_expert * settings.adapter.experts
    return {
        KIND: META,
        "backbone": without_path(settings.backbone.architecture),
        "sources": list(settings.data.sources),
        "targets": list(settings.targets),
        "seed": settings.data.seed,
        "run_fingerprint": run.fingerprint,
        "tasks": settings.training.tasks,
        "updates": settings.training.tasks // settings.training.tasks_per_update,
        "chosen_tasks": chosen,
        "training_head": head,
        "validation_accuracy_percent": sum(of_head) / len(of_head) if of_head else None,
        "validation": validation,
        "test": _nested(accuracy_rows(run.tests.by_target)),
        "sparsities": experts.sparsity_M().tolist(),
        "lambdas": saved.smat.multiplier_M.tolist(),
        "train_seconds": run.train_seconds,
        "validation_seconds": run.records.validation_seconds,
        "test_seconds": run.tests.seconds,
        **run.memory,
        "peak_memory_measures": peak_over(f"the first {WATCHED_TASKS} tasks", run.device),
        "delta_parameters": experts.count,
        "mask_parameters": logits,
        "router_parameters": router,
        "parameters": experts.count + logits + router,
        "smat_mib": (folder.path / SMAT_FILE).stat().st_size / _MIB,
        "device": describe(run.device),
        "precision": run.precision,
        "results_version": RESULTS_VERSION,
        "settings": settings.record(),
    }


def summary(metrics: Mapping[str, Any], folder: Path) -> str:
    """Return the scores as a small table for people."""
    head, rows = metrics["training_head"], {}
    if metrics["validation"]:
        rows["validation"] = _compared(metrics["validation"], head)
    for target, scores in metrics["test"].items():
        rows[f"test on {target}"] = _compared({target: scores}, head)
    low, high = min(metrics["sparsities"]), max(metrics["sparsities"])
    target = metrics["settings"]["adapter"]["sparsity"]
    rows |= {
        "sparsity": f"{low:.3f} to {high:.3f}, target {target:g}, "
        f"lambda at most {max(metrics['lambdas']):.3g}",
        "chosen state": f"after {metrics['chosen_tasks']} of {metrics['tasks']} tasks",
        "peak memory": f"{metrics['peak_memory_mib']:.1f} MiB",
        "training": f"{metrics['train_seconds']:.1f} s",
        "experts": str(folder / SMAT_FILE),
    }
    return summary_table(rows)


def _compared(by_dataset: Mapping[str, Any], head: str) -> str:
    means = {
        name: sum(scores[name]["accuracy_percent"] for scores in by_dataset.values())
        / len(by_dataset)
        for name in (head, f"{FROZEN}_{head}")
    }
    merged, frozen = means.values()
    text = f"{merged:.2f} % merged, {frozen:.2f} % frozen encoder"
    if len(by_dataset) > 1:
        return f"{text} (mean of {len(by_dataset)} sources, {head} head)"
    (scores,) = by_dataset.values()
    interval = scores[head]["interval_percent"]
    return f"{text} ({head} head" + (f", ± {interval:.2f})" if interval is not None else ")")


def _nested(rows: list[Any]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return rows of dataset, head, accuracy and interval as nested JSON values."""
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for dataset, head, accuracy, interval in rows:
        # JSON has no nan.
        known = None if interval != interval else interval
        scores = {"accuracy_percent": accuracy, "interval_percent": known}
        found.setdefault(dataset, {})[head] = scores
    return found
