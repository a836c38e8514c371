"""FLOPs and peak memory of a training step, found without taking it: by fake tensors.

Fake tensors have shapes but no values. A step runs on them as it would on real ones, operation by
operation, and everything is counted on its way: so also steps that this machine is too small for.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from scripts.bench.contenders import Contender, Shape, Trainer, make_trainer
from scripts.bench.reference_so import ReferenceSO
from so_clip.forecast.flops import counter
from so_clip.runtime.peak_memory import PeakMemory

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Estimate:
    """What a step costs: floating-point operations by kind, and PeakMemory's result, if asked."""

    flops_by_operation: Mapping[str, int]
    memory: Mapping[str, float] | None

    @property
    def flops(self) -> int:
        """All of them; a multiplication and an addition are two."""
        return sum(self.flops_by_operation.values())


def estimate(contender: Contender, shape: Shape, memory: bool = True) -> Estimate:
    """Count a contender's step after its first, on the CPU.

    FLOPs are those of matrix products, convolutions and attention, recomputed ones included. The
    reference's optimizer step cannot run on fake tensors; it has none of them, and its few MiB are
    not in the peak.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    trainer = make_trainer(contender, shape, CPU, mode)
    with mode:
        _first_step(trainer)
        return count(trainer, memory)


def count(trainer: Trainer, memory: bool = True) -> Estimate:
    """Count the next one or two steps of a trainer, on real tensors or on fake ones.

    Memory has a step of its own: to know in which module it is, torch's counter of FLOPs holds on
    to activations that a step without it would let go of.
    """
    peak = PeakMemory(trainer.classifier, trainer.optimizer, CPU)
    if memory:
        with peak:
            trainer.step()
    with counter() as flops:
        trainer.step()
    by_operation = {str(key): value for key, value in flops.get_flop_counts()["Global"].items()}
    return Estimate(by_operation, peak.result() if memory else None)


def _first_step(trainer: Trainer) -> None:
    """Make the optimizer's state, as the first step does, which is not the one that counts."""
    if isinstance(trainer.optimizer, ReferenceSO):
        trainer.optimizer.step = lambda closure=None: None  # type: ignore[method-assign]
        return
    for parameter in trainer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)
