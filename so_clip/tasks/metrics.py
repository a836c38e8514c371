"""The content of metrics.json for a run of tasks."""

from collections.abc import Mapping
from typing import Any

import torch

from so_clip.config.settings import Settings
from so_clip.data.run_data import Data
from so_clip.metrics import measures, run_identity
from so_clip.runtime.device import describe
from so_clip.version import RESULTS_VERSION


def tasks_metrics(
    settings: Settings,
    data: Data,
    *,
    accuracies: Mapping[str, float | None],
    draws_sha256: str,
    fingerprint: str,
    counts: Mapping[str, Any],
    memory: Mapping[str, float],
    device: torch.device,
) -> dict[str, Any]:
    """Return the content of metrics.json for a run of tasks.

    Args:
        settings, data: of the run.
        accuracies: means over tasks, and the half widths of their 95 % intervals.
        draws_sha256: of the classes and images of all tasks.
        fingerprint: of the run.
        counts: numbers over all tasks, such as steps and seconds.
        memory: that of the task with the highest peak.
        device: of the run.
    """
    return {
        **run_identity(settings, data, draws_sha256, fingerprint),
        "tasks": settings.data.tasks,
        **accuracies,
        "tested_on": data.tested_on,
        **memory,
        "peak_memory_measures": f"{measures(settings.trains, device, 1)}, in the task with the "
        "highest peak",
        "processes": 1,
        **counts,
        "adapter_mib": None,
        "device": describe(device),
        "precision": settings.placement.precision,
        "evaluation_precision": settings.evaluation_precision,
        "results_version": RESULTS_VERSION,
        "settings": settings.record(),
    }
