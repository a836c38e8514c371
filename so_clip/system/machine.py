"""Cores and GPUs of this machine, shared by concurrent runs."""

import getpass
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from so_clip.system.locks import lock_folder, unlock


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def concurrent_runs(launcher: Mapping[str, Any], jobs: int) -> int:
    """Return how many runs of a sweep a Hydra launcher starts at the same time on one machine.

    Args:
        launcher: its configuration, `hydra.launcher`.
        jobs: the number of jobs in the sweep; 0 if unknown.
    """
    name = str(launcher.get("_target_")).rpartition(".")[2]
    cores = usable_cores()
    if name == "JoblibLauncher":
        workers = launcher["n_jobs"] or 1
        runs = workers if workers > 0 else cores + 1 + workers  # joblib's -1 means all cores
    elif name == "RayLauncher":
        runs = int(cores / max(1, _ray_remote(launcher).get("num_cpus") or 1))
    elif name == "LocalLauncher":  # submitit's local launcher starts all jobs
        runs = jobs
    else:  # one after the other; or on Slurm, where a job has the cores that it requested
        runs = 1
    return max(1, min(runs, jobs) if jobs else runs)


def _ray_remote(launcher: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what each job asks from Ray, such as num_cpus and num_gpus."""
    remote: Mapping[str, Any] = (launcher.get("ray") or {}).get("remote") or {}
    return remote


def ray_resources(launcher: Mapping[str, Any], gpus: int) -> dict[str, Any]:
    """Return the resources that each job of a sweep shall ask from a Ray of this machine.

    Without them Ray starts a job for each core, and all of these share the GPUs. With them it
    starts a job for each GPU, and these share the cores.

    Args:
        launcher: the launcher's configuration, `hydra.launcher`.
        gpus: the number of GPUs of this machine.

    Returns:
        num_cpus and num_gpus, without what the user chose. Empty without GPUs, with another
        launcher, and with a Ray that was started before: its machines can have other numbers.
    """
    name = str(launcher.get("_target_")).rpartition(".")[2]
    remote = _ray_remote(launcher)
    if name != "RayLauncher" or not gpus or "num_gpus" in remote:
        return {}
    if ((launcher.get("ray") or {}).get("init") or {}).get("address"):
        return {}
    return {"num_gpus": 1, "num_cpus": max(1, usable_cores() // gpus), **remote}


def core_share(runs: int) -> int:
    """Return the number of cores for each of several concurrent runs; at least 1."""
    return max(1, usable_cores() // runs)


def shares_gpus(device: str, runs: int) -> bool:
    """Return whether each run of a sweep takes one of the machine's GPUs, if there are any.

    Args:
        device: the runs' setting; cuda:N names one GPU for all.
        runs: the number of concurrent runs; a single run takes the first GPU.
    """
    return runs > 1 and device in ("auto", "cuda")


@contextmanager
def lease_gpu(job_number: int, gpus: int, leases: Path | None = None) -> Iterator[int]:
    """Take one of this machine's GPUs for a job, and give it back at the end.

    Job n takes GPU n modulo `gpus`, or the next free one, since runs differ in length. If all GPUs
    are taken, jobs share them.

    Args:
        job_number: the job's number in its sweep.
        gpus: the number of GPUs, at least 1.
        leases: a folder for locks; None: one of this user's temporary folders.
    """
    leases = leases or Path(tempfile.gettempdir()) / f"so_clip-gpus-{getpass.getuser()}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(gpu) for gpu in range(gpus)]
    index, lock = job_number % gpus, None
    for gpu in ((job_number + step) % gpus for step in range(gpus)):
        with suppress(OSError):  # BlockingIOError if another job uses this GPU
            lock = lock_folder(leases / names[gpu].replace("/", "_"))
            index = gpu
            break
    try:
        yield index
    finally:
        unlock(lock)
