"""What runs that are done at the same time share: this machine's cores and GPUs."""

import getpass
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from so_clip.system.locks import lock_folder, unlock


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


def takes_gpus(device: str, at_once: int) -> bool:
    """Whether each run of a sweep takes one of the machine's GPUs by its number, if there are any.

    Args:
        device: the runs' setting; cuda:N says which.
        at_once: how many are done at a time; a run that is alone has the first.
    """
    return at_once > 1 and device in ("auto", "cuda")


@contextmanager
def one_of_gpus(job_number: int, gpus: int, leases: Path | None = None) -> Iterator[int]:
    """Take one of this machine's GPUs for a job, and give it back at the end.

    By the job's number each takes the next, round and round. Runs do not take equally long, so that
    one may be at work still: then it is the next that is not. With more jobs than GPUs they share.

    Args:
        job_number: of the job in its sweep.
        gpus: how many there are, at least 1.
        leases: a folder for locks; None: one of this user's among temporary files.
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
