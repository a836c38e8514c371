"""The scores of a run for people: its printed table."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from rich.cells import cell_len

from so_clip.data.base_to_new import BASE_TO_NEW
from so_clip.results.run_files import TASK, skipped_images
from so_clip.results.run_folder import SKIPPED_FILE
from so_clip.results.scores import ADAPTED, NOT_ADAPTED, SENTENCES, ZERO_SHOT


def summary_rows(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the run's accuracies for people, by their labels."""
    if metrics.get("tasks"):
        return _tasks_rows(metrics)
    if metrics.get(TASK) == SENTENCES:
        return _sentence_rows(metrics)
    adapts = metrics["stop_reason"] != NOT_ADAPTED
    both = partial(_both, adapts=adapts)
    rows = {"zero-shot accuracy": _percent(metrics[f"{ZERO_SHOT}accuracy_percent"])}
    if adapts:
        rows["adapted accuracy"] = _percent(metrics["accuracy_percent"])
    if metrics["protocol"] == BASE_TO_NEW:
        rows = {
            "base classes": both(metrics, "base_accuracy_percent"),
            "new classes": both(metrics, "new_accuracy_percent"),
            "harmonic mean": both(metrics, "harmonic_mean_percent"),
        }
    transfer = metrics.get("transfer", {})
    rows |= {f"on {name}": both(scores, "accuracy_percent") for name, scores in transfer.items()}
    if len(transfer) > 1:
        rows["average of these"] = both(metrics, "transfer_accuracy_percent")
    if skipped := skipped_images(metrics, *transfer.values()):
        rows["skipped images"] = f"{skipped}: see {SKIPPED_FILE}"
    return rows


def _tasks_rows(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the mean accuracies over tasks and their intervals, by their labels."""

    def row(prefix: str, name: str = "accuracy") -> str:
        mean, interval = (metrics[f"{prefix}{name}_{kind}percent"] for kind in ("", "interval_"))
        return "-" if mean is None else f"{mean:.2f} ± {interval:.2f} %"

    rows = {"zero-shot accuracy": row(ZERO_SHOT)}
    if metrics["stop_reason"] != NOT_ADAPTED:
        rows |= {"adapted accuracy": row(ADAPTED), "difference": row("", "difference")}
    rows["scores"] = f"means over {metrics['tasks']} tasks with 95 % intervals"
    return rows


def _sentence_rows(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the accuracy on sentences, its interval, and that of the largest class."""
    low, high = metrics["accuracy_low_percent"], metrics["accuracy_high_percent"]
    accuracy = f"{_percent(metrics['accuracy_percent'])}, 95 % interval {low:.1f} to {high:.1f} %"
    rows = {
        "accuracy": accuracy,
        "largest class": f"{_percent(metrics['majority_percent'])} of {metrics['test_images']}",
    }
    cut = {split: metrics[f"truncated_{split}"] for split in ("train", "test")}
    if any(cut.values()):
        counts = ", ".join(f"{count} {split}" for split, count in cut.items() if count)
        rows["cut to max_length"] = f"{counts} examples"
    return rows


def _both(values: Mapping[str, Any], key: str, adapts: bool) -> str:
    zero_shot = f"{_percent(values[f'{ZERO_SHOT}{key}'])} zero-shot"
    return f"{zero_shot}, {_percent(values[key])} adapted" if adapts else zero_shot


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} %"


def summary_table(rows: Mapping[str, str]) -> str:
    """Return the rows as a text table of two aligned columns."""
    widths = {name: cell_len(name) for name in rows}
    width = max(widths.values())
    lines = (name + " " * (width - widths[name]) + f"  {rows[name]}" for name in rows)
    return "\n".join(lines)
