"""Seconds, of steps and of optimizers alone, contenders taking turns."""

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
    """Let all step in turn, `rounds` times over, so that a slow minute is everybody's."""
    taken: dict[str, list[Seconds]] = {name: [] for name in steps}
    turns = [(name, step) for _ in range(rounds) for name, step in steps.items()]
    for name, step in tqdm(turns, description, unit="step", dynamic_ncols=True):
        taken[name].append(step())
    return taken


def time_steps(
    contenders: Sequence[Contender], shape: Shape, device: torch.device, rounds: int
) -> dict[str, list[Seconds]]:
    """Time whole training steps of several contenders on one shape, after an untimed one of each.

    The first makes the optimizer's state, and the reference's supports.
    """
    trainers = {each.name: make_trainer(each, shape, device) for each in contenders}
    for trainer in trainers.values():
        trainer.step()
    steps = {name: trainer.step for name, trainer in trainers.items()}
    return interleaved(steps, rounds, f"{shape.dataset} {shape.architecture}")


def spread(seconds: Sequence[Seconds]) -> dict[str, float]:
    """Return median, least and most of whole steps, and the medians of their parts."""
    steps = [each.step for each in seconds]
    return {
        "step_seconds": median(steps),
        "step_seconds_min": min(steps),
        "step_seconds_max": max(steps),
        "forward_seconds": median(each.forward for each in seconds),
        "backward_seconds": median(each.backward for each in seconds),
        "optimizer_seconds": median(each.optimizer for each in seconds),
    }


class OptimizerTimes:
    """Seconds of an optimizer's own steps on the gradients it reads, after a first one."""

    def __init__(self, contender: Contender, shape: Shape, device: torch.device) -> None:
        self._trainer = make_trainer(contender, shape, device)
        self._drawing: list[float] = []
        self._others: list[float] = []
        self._step()

    def turn(self) -> None:
        """Take T steps, so that supports are drawn as often as in training."""
        for _ in range(T):
            drew, seconds = self._step()
            (self._drawing if drew else self._others).append(seconds)

    def result(self) -> dict[str, float]:
        """Return the mean, and medians of steps that draw new supports and of those that do not."""
        return {
            "steps": len(self._drawing) + len(self._others),
            "mean_seconds": fmean([*self._drawing, *self._others]),
            "median_seconds": median(self._others),
            "drawing_seconds": median(self._drawing or self._others),
        }

    def _step(self) -> tuple[bool, float]:
        trainer = self._trainer
        _give_gradients(trainer)
        before, start = _a_support(trainer), trainer.now()
        trainer.optimizer.step()
        seconds = trainer.now() - start
        return _a_support(trainer) is not before, seconds


def _give_gradients(trainer: Trainer) -> None:
    """Put noise where the optimizer looks for gradients; dense ones stay, being large."""
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


def _a_support(trainer: Trainer) -> Tensor | None:
    """Return the first parameter's, which is another tensor once it is drawn anew."""
    support: Tensor | None = trainer.optimizer.state[trainer.parameters()[0]].get("support")
    return support
