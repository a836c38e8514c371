"""FLOPs and peak memory of a training step, counted on fake tensors without computing it.

Fake tensors have shapes but no values. A step runs on them with the same operations as on real
tensors, and each operation is counted. So steps can be counted that this machine is too small for.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from scripts.bench.contenders import Contender, Shape, Trainer, make_trainer
from scripts.bench.reference_so import ReferenceSO
from so_clip.forecast.flops import CPU_ATTENTION
from so_clip.runtime.peak_memory import PeakMemory

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Estimate:
    """The cost of a step: FLOPs by operation, and PeakMemory's result or None."""

    flops_by_operation: Mapping[str, int]
    memory: Mapping[str, float] | None

    @property
    def flops(self) -> int:
        """All FLOPs; a multiplication and an addition are two."""
        return sum(self.flops_by_operation.values())


def estimate(contender: Contender, shape: Shape, memory: bool = True) -> Estimate:
    """Count a contender's step after its first, on the CPU.

    FLOPs are those of matrix products, convolutions and attention, recomputed ones included. The
    reference's optimizer step cannot run on fake tensors. It has no such operations, and its few
    MiB are missing in the peak.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    trainer = make_trainer(contender, shape, CPU, mode)
    with mode:
        _first_step(trainer)
        return count(trainer, memory)


def count(trainer: Trainer, memory: bool = True) -> Estimate:
    """Count the next one or two steps of a trainer, on real or fake tensors.

    Memory is counted in a separate step, because torch's FLOP counter keeps activations alive that
    a normal step frees.
    """
    peak = PeakMemory(trainer.classifier, trainer.optimizer, CPU)
    if memory:
        with peak:
            trainer.step()
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as flops:
        trainer.step()
    by_operation = {str(key): value for key, value in flops.get_flop_counts()["Global"].items()}
    return Estimate(by_operation, peak.result() if memory else None)


def _first_step(trainer: Trainer) -> None:
    """Create the optimizer's state, as the first step does; that step is not counted."""
    if isinstance(trainer.optimizer, ReferenceSO):
        trainer.optimizer.step = lambda closure=None: None  # type: ignore[method-assign]
        return
    # With a forward pass: the first step ends the sampling of layers that it has not called.
    trainer.step()
