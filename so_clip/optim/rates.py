"""The settings of one step of SO, and how far its entries move.

Names end in their shape: E entries, of any number of tensors.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from so_clip.optim.support import to_device, write_over


@dataclass(frozen=True)
class Rule:
    """The settings of one step; see SO for their meaning."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    order: str
    moment_selection: str
    maximize: bool
    bias_correction: str = "step"

    @classmethod
    def of(cls, group: dict[str, Any]) -> "Rule":
        """Return the settings of a parameter group."""
        beta1, beta2 = group["betas"]
        names = {field.name for field in fields(cls)} - {"beta1", "beta2"}
        return cls(beta1=beta1, beta2=beta2, **{name: group[name] for name in names})


@dataclass(frozen=True)
class Rates:
    """The numbers of a step that differ from step to step.

    They are Python numbers, or tensors without dimensions. Tensors keep their addresses, so a step
    that was captured reads new values there. Both give the same results bit for bit, because torch
    rounds a Python number to the dtype of the tensor that it multiplies.

    Attributes:
        step_size: lr / (1 - β1^t); lr / (1 - β1^t)² for bias_correction="twice".
        variance_scale: 1 / (1 - β2^t).
        lr: the learning rate.
        variance_weight: 1 - β2^t.
        row_4: the tensor that has these four numbers, if they are tensors.
    """

    step_size: float | Tensor
    variance_scale: float | Tensor
    lr: float | Tensor
    variance_weight: float | Tensor
    row_4: Tensor | None = None

    def on_device(self, device: torch.device) -> Tensor:
        """Return the four numbers as one float32 tensor, in this order."""
        if self.row_4 is not None:
            return self.row_4
        return to_device(torch.tensor(self.numbers()), device)

    def numbers(self) -> list[Any]:
        """Return the four numbers."""
        return [self.step_size, self.variance_scale, self.lr, self.variance_weight]

    @classmethod
    def at(cls, rule: Rule, step: int) -> "Rates":
        """Return the numbers of step t = `step`, from 1."""
        mean_weight, variance_weight = 1 - rule.beta1**step, 1 - rule.beta2**step
        step_size = rule.lr / mean_weight
        if rule.bias_correction == "twice":
            step_size /= mean_weight
        return cls(step_size, 1 / variance_weight, rule.lr, variance_weight)


class DeviceRates:
    """The numbers of the coming step of each parameter group, on the tensors' devices.

    Each device has one tensor. A step never replaces it, so writing it is one copy.
    """

    def __init__(self) -> None:
        self._rates: dict[tuple[torch.device, torch.dtype], Tensor] = {}  # [G groups, 4]
        self._steps_G: list[int] = []  # the step that each group's numbers are of

    def write(self, groups: Sequence[dict[str, Any]], states: Mapping[Tensor, Any]) -> None:
        """Write the numbers for the coming step, without waiting for a device.

        Args:
            groups: the optimizer's groups. The numbers are those for the tensors that took most
                steps.
            states: the tensors' states.
        """
        numbers_G4, places = [], set()
        self._steps_G = []
        for group in groups:
            step = max((states[param]["step"] for param in group["params"]), default=0) + 1
            self._steps_G.append(step)
            rates = Rates.at(Rule.of(group), step)
            numbers_G4.append(rates.numbers())
            places |= {(param.device, moment_dtype(param)) for param in group["params"]}
        for device, dtype in places:
            new_G4 = torch.tensor(numbers_G4, dtype=dtype)
            old_G4 = self._rates.get((device, dtype))
            if old_G4 is None or old_G4.shape != new_G4.shape:
                self._rates[device, dtype] = to_device(new_G4, device)
            else:
                write_over(old_G4, new_G4)

    def are_of(self, group: int, step: int) -> bool:
        """Return whether the numbers of this group are those of a step, counted from 1."""
        return self._steps_G[group : group + 1] == [step]

    def of(self, group: int, param: Tensor) -> Rates:
        """Return the numbers for a tensor of this group."""
        row_4 = self._rates[param.device, moment_dtype(param)][group]
        step_size, variance_scale, lr, variance_weight = row_4.unbind()
        return Rates(step_size, variance_scale, lr, variance_weight, row_4)


def moment_dtype(param: Tensor) -> torch.dtype:
    """Return the dtype of a weight's moments: its own, but at least float32."""
    return torch.promote_types(param.dtype, torch.float32)


def descent(mu_E: Tensor, nu_E: Tensor, age_E: Tensor | None, rule: Rule, rates: Rates) -> Tensor:
    """Return lr · μ^ / (sqrt(ν^) + eps), for moments that started at 0 t steps ago.

    Args:
        mu_E, nu_E: the moments.
        age_E: t of each entry; None: t is the step's number, for all entries.
        rule, rates: of the step.
    """
    step_size, variance_scale = rates.step_size, rates.variance_scale
    if age_E is not None:
        age_E = age_E.to(mu_E.dtype)
        # In this order, so that a Python number and a tensor as lr give the same bits.
        step_size = bias_correction(rule.beta1, age_E).reciprocal() * rates.lr
        variance_scale = bias_correction(rule.beta2, age_E).reciprocal()
    mean_E = mu_E * step_size
    scale_E = (nu_E * variance_scale).sqrt_()
    return mean_E.div_(scale_E.add_(rule.eps))


def bias_correction(beta: float, age_E: Tensor) -> Tensor:
    """Return 1 - beta^t, the total weight of t values in a decaying mean."""
    # expm1: beta^t can be so close to 1 that the difference loses its digits in float32.
    return -torch.expm1(age_E * (math.log(beta) if beta else -math.inf))
