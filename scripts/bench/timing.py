"""Seconds of training steps and of optimizers alone; contenders take turns."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from scripts.bench.contenders import Contender, Seconds, Shape, T, Trainer, make_trainer
from so_clip.optim.gradients import add_sampled_gradient


def interleaved(
    steps: Mapping[str, Callable[[], Seconds]], rounds: int, description: str
) -> dict[str, list[Seconds]]:
    """Run all steps in turn, `rounds` times, so that a slow minute affects all contenders."""
    taken: dict[str, list[Seconds]] = {name: [] for name in steps}
    turns = [(name, step) for _ in range(rounds) for name, step in steps.items()]
    for name, step in tqdm(turns, description, unit="step", dynamic_ncols=True):
        taken[name].append(step())
    return taken


def time_steps(
    contenders: Sequence[Contender], shape: Shape, device: torch.device, rounds: int
) -> dict[str, list[Seconds]]:
    """Time whole training steps of several contenders on one shape, after an untimed step of each.

    The untimed step creates the optimizer's state and the reference's supports.
    """
    trainers = {who.name: make_trainer(who, shape, device) for who in contenders}
    for trainer in trainers.values():
        trainer.step()
    steps = {name: trainer.step for name, trainer in trainers.items()}
    return interleaved(steps, rounds, f"{shape.dataset} {shape.architecture}")


def spread(seconds: Sequence[Seconds]) -> dict[str, float]:
    """Return median, minimum and maximum of whole steps, and medians of their parts."""
    steps = [taken.step for taken in seconds]
    return {
        "step_seconds": median(steps),
        "step_seconds_min": min(steps),
        "step_seconds_max": max(steps),
        "forward_seconds": median(taken.forward for taken in seconds),
        "backward_seconds": median(taken.backward for taken in seconds),
        "optimizer_seconds": median(taken.optimizer for taken in seconds),
    }


class OptimizerTimes:
    """Seconds of an optimizer's steps alone, after an untimed first step."""

    def __init__(self, contender: Contender, shape: Shape, device: torch.device) -> None:
        self._trainer = make_trainer(contender, shape, device)
        self._drawing: list[float] = []
        self._others: list[float] = []
        self._step()

    def turn(self) -> None:
        """Take T steps, so supports are drawn as often as in training."""
        for _ in range(T):
            drew, seconds = self._step()
            (self._drawing if drew else self._others).append(seconds)

    def result(self) -> dict[str, float]:
        """Return the mean, and the medians of steps with and without a new draw of supports."""
        return {
            "steps": len(self._drawing) + len(self._others),
            "mean_seconds": fmean([*self._drawing, *self._others]),
            "median_seconds": median(self._others),
            "drawing_seconds": median(self._drawing or self._others),
        }

    def _step(self) -> tuple[bool, float]:
        trainer = self._trainer
        _set_gradients(trainer)
        before, start = _first_support(trainer), trainer.now()
        trainer.optimizer.step()
        seconds = trainer.now() - start
        return _first_support(trainer) is not before, seconds


def _set_gradients(trainer: Trainer) -> None:
    """Set the gradients that the optimizer reads to noise; existing dense ones are reused."""
    optimizer: Any = trainer.optimizer
    is_sampled = hasattr(optimizer, "support")
    if is_sampled:
        optimizer.zero_grad()
    for parameter in trainer.parameters():
        if is_sampled:
            support_M = optimizer.support(parameter)
            values_M = torch.randn(len(support_M), device=parameter.device)
            add_sampled_gradient(parameter, support_M, values_M)
        elif parameter.grad is None:
            parameter.grad = torch.randn_like(parameter)


def _first_support(trainer: Trainer) -> Tensor | None:
    """Return the first parameter's support; each draw makes a new tensor."""
    support: Tensor | None = trainer.optimizer.state[trainer.parameters()[0]].get("support")
    return support
