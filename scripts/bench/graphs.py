"""Whole training steps on a GPU, eager and captured: time, busy share, launches and memory.

A time budget covers all steps. What does not fit is skipped, and its rows say so.
"""

import gc
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from scripts.bench.contenders import Contender, Shape, T, Trainer, make_trainer, row_head
from scripts.bench.plans import Plan
from scripts.bench.tables import hardware
from so_clip.capture.captured_step import STEPS_OF_SHAPE, CapturedStep, Recorder
from so_clip.capture.cuda_recorder import CudaRecorder
from so_clip.errors import InputError

Row = dict[str, Any]
Step = Callable[[], Any]
MIB = 2**20
BUDGET_SECONDS = 330.0
# Seconds after which no further block of T steps begins.
_ENOUGH_SECONDS = 3.0
_PROFILED_STEPS = 3
_WARM_UP_STEPS = 3
_LAUNCHES = ("LaunchKernel", "GraphLaunch", "Memcpy", "Memset")  # in names of CUDA's calls
_SKIPPED = "skipped: the time was over"


class PlainRecorder:
    """Takes the place of CUDA graphs on the CPU: a replay calls the recorded function again."""

    def training(self) -> AbstractContextManager[None]:
        """Return an empty context."""
        return nullcontext()

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Return the function."""
        return function

    def release(self) -> None:
        """Do nothing."""


def graph_rows(plan: Plan, device: torch.device, seconds: float) -> Iterator[list[Row]]:
    """Yield the rows of each contender and dataset as soon as they are measured.

    Args:
        plan: see Plan.
        device: of the steps.
        seconds: for all steps together.
    """
    stop = time.monotonic() + seconds
    for dataset in plan.step_datasets:
        for contender in plan.step_contenders:
            shapes = [
                Shape(dataset, batch, plan.architecture, precision=plan.precision)
                for batch in plan.graph_batches
            ]
            yield list(_rows_of(contender, shapes, device, stop, plan.rounds))
            _free(device)


def _rows_of(
    contender: Contender, shapes: Sequence[Shape], device: torch.device, stop: float, rounds: int
) -> Iterator[Row]:
    trainer: Trainer | None = None
    note = "" if time.monotonic() < stop else _SKIPPED
    try:
        trainer = None if note else make_trainer(contender, shapes[0], device)
    except torch.OutOfMemoryError:
        note = "out of memory"
    ways = ["eager"] if contender.kind == "reference" else ["eager", "captured"]
    for shape in shapes:
        for way in ways:
            row: Row = {
                **row_head(shape, contender),
                "steps_are": way,
                **dict.fromkeys(_MEASURED),
                "note": note,
                "machine": platform.node(),
                "host": hardware(torch.device("cpu")),
            }
            if trainer is not None and time.monotonic() >= stop:
                row["note"] = _SKIPPED
            elif trainer is not None:
                trainer.batch = shape.images(trainer.classifier.backbone, device)
                try:
                    row |= _measured(trainer, way == "captured", rounds)
                except torch.OutOfMemoryError:
                    row["note"] = "out of memory"
                except InputError as error:
                    row["note"] = str(error)
                trainer.optimizer.zero_grad(set_to_none=True)
                _free(device)
            yield row


def _measured(trainer: Trainer, captured: bool, rounds: int) -> Row:
    """Return the columns of _MEASURED for one way of taking steps."""
    if torch.device(trainer.device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(trainer.device)
    if not captured:
        return _numbers(trainer, trainer.step_without_times, rounds)
    step = trainer.captured(_recorder(trainer.device), _WARM_UP_STEPS)
    with step.training():
        for _ in range(_WARM_UP_STEPS + STEPS_OF_SHAPE + 1):
            step(*trainer.batch)
        if step.outcome != "captured":
            return {"note": step.outcome}
        return _numbers(trainer, lambda: _replay(step, trainer.batch), rounds)


def _replay(step: CapturedStep, batch: tuple[Tensor, Tensor]) -> None:
    step(*batch)


def _numbers(trainer: Trainer, step: Step, rounds: int) -> Row:
    device = trainer.device
    for _ in range(_WARM_UP_STEPS):
        step()
    blocks: list[float] = []
    begin = trainer.now()
    while len(blocks) < rounds and (not blocks or trainer.now() - begin < _ENOUGH_SECONDS):
        start = trainer.now()
        for _ in range(T):  # so each block draws new supports once
            step()
        blocks.append((trainer.now() - start) / T)
    seconds = median(blocks)
    row: Row = {
        "blocks": len(blocks),
        "step_seconds": seconds,
        "step_seconds_min": min(blocks),
        "step_seconds_max": max(blocks),
        **_profiled(trainer, step, seconds),
    }
    if device.type == "cuda":
        row["peak_allocated_mib"] = torch.cuda.max_memory_allocated(device) / MIB
        row["peak_reserved_mib"] = torch.cuda.max_memory_reserved(device) / MIB
    return row


def _profiled(trainer: Trainer, step: Step, seconds: float) -> Row:
    """Return what the profiler sees of a few steps, each for one step; {} if it sees no GPU.

    The time of a step is that without the profiler, because the profiler slows the host down.
    """
    if trainer.device.type != "cuda":
        return {}
    try:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            for _ in range(_PROFILED_STEPS):
                step()
            trainer.now()
        events = list(profiler.events() or [])
    except RuntimeError:  # CUPTI is missing, or another program uses it
        return {}
    kernels = [event for event in events if event.device_type == DeviceType.CUDA]
    if not kernels:
        return {}
    calls = sum(
        event.device_type == DeviceType.CPU
        and event.name.startswith("cu")
        and any(part in event.name for part in _LAUNCHES)
        for event in events
    )
    busy_seconds = busy_microseconds(kernels) / 1e6 / _PROFILED_STEPS
    return {
        "device_busy_share": busy_seconds / seconds,
        "kernels": len(kernels) / _PROFILED_STEPS,
        "launches": calls / _PROFILED_STEPS,
    }


def busy_microseconds(events: Sequence[FunctionEvent]) -> float:
    """Return how long at least one of these events was running."""
    busy, end = 0.0, float("-inf")
    for start, stop in sorted((e.time_range.start, e.time_range.end) for e in events):
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return busy


_MEASURED = (
    "blocks",
    "step_seconds",
    "step_seconds_min",
    "step_seconds_max",
    "device_busy_share",
    "kernels",
    "launches",
    "peak_allocated_mib",
    "peak_reserved_mib",
)


def _recorder(device: torch.device) -> Recorder:
    return CudaRecorder(device) if device.type == "cuda" else PlainRecorder()


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
