"""Training steps on fake tensors, which have shapes and no values: memory and operations."""

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from so_clip.errors import InputError
from so_clip.forecast.flops import FlopCounter, Flops
from so_clip.forecast.repeats import Repeats
from so_clip.methods.model import Model
from so_clip.runtime.peak_memory import PeakMemory
from so_clip.train import train_step

CPU = torch.device("cpu")


def refusal(error: Exception) -> InputError:
    """Return the error for shapes that depend on values."""
    return InputError(
        f"this run cannot be forecast: the shapes in {error} depend on values, and a forecast "
        "has none. For optimizer=so, use gradient_selection=random or density_ratio=1."
    )


def forget_values(module: nn.Module, mode: FakeTensorMode) -> None:
    """Replace all real tensors by fake ones: prompts, and tensors that an adapter added."""
    for child in module.modules():
        held: list[dict[str, Any]] = [vars(child)[kind] for kind in ("_parameters", "_buffers")]
        for tensors in held:
            for name, value in tensors.items():
                if value is not None and not isinstance(value, FakeTensor):
                    tensors[name] = mode.from_tensor(value)


def make_state(optimizer: torch.optim.Optimizer) -> None:
    """Make the state of the optimizer as its first step does, without a pass through the model."""
    for group in optimizer.param_groups:
        # SO draws a new support every T steps; with T=1 the counted step draws one.
        group |= {"T": 1} if group.get("T") else {}
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def counted_step(
    model: Model,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
    repeats_blocks: bool = True,
) -> tuple[Flops, PeakMemory]:
    """Take one training step; return its operations and its memory.

    Args:
        model, optimizer: of the run, on fake tensors.
        batch: inputs and labels.
        repeats_blocks: run a few of the equal blocks of CLIP's towers, and count the others by
            these; see Repeats.
    """
    assert model.adapter is not None
    classifier, flops = model.classifier, Flops()
    peak, counter = PeakMemory(classifier, optimizer, CPU), FlopCounter()
    repeats = Repeats(peak, counter)
    peak.log.after_operation = counter.add  # faster than a second mode

    def forward_done(*_: Any) -> None:
        flops.forward = counter.total

    def backward_done(*_: Any) -> None:
        if repeats_blocks:
            repeats.complete_gradients(optimizer)
        flops.backward = counter.total - flops.forward

    hooks = [
        classifier.register_forward_hook(forward_done),
        optimizer.register_step_pre_hook(backward_done),
    ]
    with peak, repeats.in_towers(classifier) if repeats_blocks else nullcontext():
        train_step(
            classifier,
            *batch,
            optimizer=optimizer,
            precision=model.precision,
            penalty=partial(model.adapter.penalty, classifier),
        )
    for hook in hooks:
        hook.remove()
    return flops, peak
