"""The choice between captured and eager training steps."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch.optim import Optimizer

from so_clip.capture.device_steps import device_steps
from so_clip.capture.eager import Eager
from so_clip.errors import InputError
from so_clip.runtime.precision import Precision

Graph = bool | Literal["auto"]
GRAPH_DEVICES = ("cuda",)


def why_eager(
    graph: Graph,
    optimizer: Optimizer | None,
    *,
    device: torch.device,
    precision: Precision,
    processes: int = 1,
    model_reason: str | None = None,
    generators: Sequence[torch.Generator] = (),
) -> Eager | None:
    """Return why training steps are not captured; None if they can be.

    Args:
        graph: the user's option.
        optimizer: None if nothing is trained.
        device, precision: of the training.
        processes: that take each step together.
        model_reason: why a step of the model cannot be captured, if it knows a reason.
        generators: that a step draws from.

    Raises:
        InputError: the user demands a graph, and there can be none.
    """
    found = _reason(graph, optimizer, device, precision, processes)
    if found is None and model_reason is not None:
        found = Eager(model_reason, "Use another backbone")
    if found is None and any(generator.device.type != device.type for generator in generators):
        found = Eager("random numbers are drawn on the host", "Use another method")
    if found is not None and graph is True:
        raise InputError(found.refusal())
    return found


def _reason(
    graph: Graph,
    optimizer: Optimizer | None,
    device: torch.device,
    precision: Precision,
    processes: int,
) -> Eager | None:
    if graph is False:
        return Eager("graph=false", "Use graph=auto")
    if optimizer is None:
        return Eager("nothing is trained", "Use a method that trains")
    if device.type not in GRAPH_DEVICES:
        return Eager(f"the device is {device.type}, and only CUDA has graphs", "Use device=cuda")
    if precision.scaler.is_enabled():
        return Eager(
            f"precision={precision.name} scales gradients, and the host reads in each step "
            "whether they are finite",
            "Use precision=bf16 or precision=fp32",
        )
    if processes > 1:
        return Eager(f"{processes} processes exchange gradients in a step", "Leave torchrun out")
    steps = device_steps(optimizer)
    return steps if isinstance(steps, Eager) else None
