"""The device of a run, and its threads."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from so_clip.checks import device_name
from so_clip.errors import InputError
from so_clip.system.machine import lease_gpu


def pick_device(name: str) -> torch.device:
    """Return the device that `name` (auto | cpu | cuda | cuda:N | mps) means on this machine.

    Raises:
        InputError: the name is another one, or the machine has no such device, or fewer CUDA
            devices than the name needs.
    """
    if device_name(name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(
            f"device={name}: torch {torch.__version__} finds no Apple GPU on this machine. Use "
            "device=cpu or device=auto."
        )
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise InputError(
                f"device={name}: this machine has no CUDA device that torch {torch.__version__} "
                "can use. Use device=cpu or device=auto."
            )
        if (device.index or 0) >= count:
            raise InputError(
                f"device={name}: there are {count} CUDA devices, cuda:0 to cuda:{count - 1}."
            )
    return device


def describe(device: torch.device) -> str:
    """Return the device's name for a record."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def threads_of(device: torch.device) -> int | None:
    """Return torch's CPU threads, which decide how sums are rounded; None on a GPU."""
    return torch.get_num_threads() if device.type == "cpu" else None


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Set the number of torch's CPU threads inside the context; None does not change it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_gpu(job_number: int | None) -> Iterator[None]:
    """Make "cuda" one of the machine's GPUs, chosen by a job's number; None does nothing."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if job_number is None or not count:
        yield
        return
    with lease_gpu(job_number, count) as index, torch.cuda.device(index):
        yield
