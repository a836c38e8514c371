"""What runs that are done at the same time share: this machine's cores and GPUs."""

import os
from collections.abc import Mapping
from typing import Any


def usable_cores() -> int:
    """Return how many cores this process may use."""
    usable = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(usable(0)) if usable else os.cpu_count() or 1


def runs_at_once(launcher: Mapping[str, Any], jobs: int) -> int:
    """Return how many runs of a sweep a Hydra launcher does at a time on one machine.

    Args:
        launcher: its configuration, `hydra.launcher`.
        jobs: how many the sweep has in all; 0 where that is not known.
    """
    name = str(launcher.get("_target_")).rpartition(".")[2]
    cores = usable_cores()
    if name == "JoblibLauncher":
        given = launcher["n_jobs"] or 1
        at_once = given if given > 0 else cores + 1 + given  # as joblib counts: -1 is all
    elif name == "RayLauncher":
        at_once = cores
    elif name == "LocalLauncher":  # submitit's, which starts all at the same time
        at_once = jobs
    else:  # one after the other; or on Slurm, where a job has the cores that it asked for
        at_once = 1
    return max(1, min(at_once, jobs) if jobs else at_once)


def core_share(at_once: int) -> int:
    """Return how many cores are left for each of so many runs; at least 1."""
    return max(1, usable_cores() // at_once)


def gpu_of(job_number: int, gpus: int) -> int | None:
    """Return which of so many GPUs a job takes: each the next, round and round. None without."""
    return job_number % gpus if gpus else None
