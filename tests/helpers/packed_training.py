"""Trainings by SO, with weights packed into one arena or separate."""

from typing import Any

import torch
from torch import Tensor, nn

from so_clip.optim.so import SO

SHAPES = ((7, 11), (40, 30), (3, 5), (40, 30), (64, 9))


def weights(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=draw).to(dtype)) for shape in SHAPES]


def gradients(step: int, dtype: torch.dtype) -> list[Tensor]:
    draw = torch.Generator().manual_seed(100 + step)
    # Few distinct values, so that moments tie.
    return [torch.randint(-2, 3, shape, generator=draw).to(dtype) / 4 for shape in SHAPES]


class Training:
    """Some steps of SO on the same gradients, packed or not, static or not."""

    def __init__(self, *, packed: bool, static: bool = False, dtype=torch.float32, **options: Any):
        self.params, self.dtype = weights(dtype), dtype
        self.optimizer = SO(self.params, lr=0.1, **({"density_ratio": 0.02, "T": 3} | options))
        self.static, self.steps = static, 0
        if packed:
            self.optimizer.pack(torch.bfloat16 if dtype == torch.float32 else None)
        if static:
            self.optimizer.make_static()

    def take(self, steps: int) -> "Training":
        for _ in range(steps):
            self.optimizer.param_groups[0]["lr"] = 0.1 / (1 + self.steps)
            for param, grad in zip(self.params, gradients(self.steps, self.dtype), strict=True):
                param.grad = grad
            if self.static:
                self.optimizer.prepare_step()
                self.optimizer.step_on_device()
                self.optimizer.finish_step()
            else:
                self.optimizer.step()
            self.steps += 1
        return self

    def record(self) -> list[Any]:
        """Return weights, supports and moments, entries in the order of their indices."""
        found: list[Any] = [param.detach().clone() for param in self.params]
        for param in self.params:
            state = self.optimizer.state[param]
            order_M = state["index"].argsort()
            found += [state[name][order_M] for name in ("index", "exp_avg", "exp_avg_sq")]
            found += [self.optimizer.support(param), torch.tensor(state["step"])]
        return found


def assert_same(one: Training, other: Training) -> None:
    for ours, theirs in zip(one.record(), other.record(), strict=True):
        assert torch.equal(ours, theirs)
