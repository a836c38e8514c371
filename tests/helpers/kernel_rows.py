"""Rows for the kernel of SO's step, and the same tensors for the torch path.

Both hold the same weights and moments. The rows of the kernel have pads and share one buffer.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from so_clip.optim.functional import Moments, so
from so_clip.optim.rates import Rates, Rule
from so_clip.optim.sparse_entries import locate
from so_clip.optim.step_kernel import step_rows

Gradients = Callable[[int, torch.Generator], Tensor]


@dataclass(frozen=True)
class Case:
    """What to step, and how."""

    sizes: list[int]  # M of each row
    rule: Rule
    weight_dtype: torch.dtype = torch.float32
    half_dtype: torch.dtype | None = None
    has_ages: bool = False
    first_step: int = 0  # the steps and the ages before the first step
    seed: int = 0
    device: str = "cpu"


def normal(size: int, draw: torch.Generator) -> Tensor:
    """Draw gradients that are never equal."""
    return torch.randn(size, generator=draw)


def tied(size: int, draw: torch.Generator) -> Tensor:
    """Draw gradients of few values: many are equal in size, and most are 0 or -0."""
    values = torch.tensor([0.0, -0.0, 0.0, -0.0, 0.0, -0.0, 0.5, -0.5, 1.0, -1.0])
    return values[torch.randint(0, len(values), (size,), generator=draw)]


def extreme(size: int, draw: torch.Generator) -> Tensor:
    """Draw gradients among the largest and the smallest floats, infinity and NaN."""
    values = [math.nan, math.inf, -math.inf, 3e38, -2e19, 1e-19, -3e-23, 1e-39, -1e-45, -0.0]
    chosen = torch.randint(0, 40, (size,), generator=draw)
    return torch.tensor(values + [1.0, -1e-3] * 15)[chosen]


class ExactRoots(TorchFunctionMode):
    """Round square roots of float32 correctly, as GPUs do.

    On some CPUs torch's square root is one unit in the last place off. Through float64 it is exact.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("sqrt", "sqrt_") and args[0].dtype == torch.float32:
            root = args[0].double().sqrt().float()
            return args[0].copy_(root) if name == "sqrt_" else root
        assert "sqrt" not in name, f"{name} is not made exact here"
        return func(*args, **(kwargs or {}))


def rule_with(**changes: object) -> Rule:
    """Return SO's usual settings with changes."""
    usual: dict[str, object] = {
        "lr": 0.01,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "order": "prune_first",
        "moment_selection": "importance",
        "maximize": False,
    }
    return Rule(**{**usual, **changes})  # type: ignore[arg-type]


class Rows:
    """The same state twice: for the kernel, and as `torch_...` for the torch path, one row each."""

    def __init__(self, case: Case) -> None:
        self.case, self.step, self.m = case, case.first_step, max(case.sizes)
        self.draw = torch.Generator().manual_seed(case.seed)
        # Supports overlap much in tensors of few more entries than M, and little in large ones.
        self.numels = [size + (size, 3, 20 * size)[row % 3] for row, size in enumerate(case.sizes)]
        self.torch_weights = [
            torch.randn(numel, generator=self.draw).to(case.device, case.weight_dtype)
            for numel in self.numels
        ]
        # The last weight is a scratch slot. The pads' indices lead to it.
        self.flat = torch.cat([*self.torch_weights, self.torch_weights[0].new_zeros(1)])
        self.half = None if case.half_dtype is None else self.flat.to(case.half_dtype)
        self.offset_R = torch.tensor([0, *self.numels], device=case.device).cumsum(0)[:-1]
        self.size_R = torch.tensor(case.sizes, device=case.device)

        shape = (len(case.sizes), self.m)
        self.support_RM = self.offset_R.new_zeros(shape)
        self.supports: list[Tensor] = []
        self.redraw()
        zero_RM = torch.zeros(shape, device=case.device)
        self.moments = Moments(
            index_RM=self.support_RM.clone(),
            place_RM=torch.full_like(self.support_RM, self.m),
            exp_avg_RM=zero_RM,
            exp_avg_sq_RM=zero_RM.clone(),
            age_RM=zero_RM.int() if case.has_ages else None,
        )
        self.torch_moments = []
        for row, size in enumerate(case.sizes):
            if self.moments.age_RM is not None:
                self.moments.age_RM[row, :size] = case.first_step
            tensors = [
                None if tensor is None else tensor[row : row + 1, :size].clone()
                for tensor in vars(self.moments).values()
            ]
            self.torch_moments.append(Moments(*tensors))  # type: ignore[arg-type]
        self.locate()

    def redraw(self) -> None:
        """Give every tensor a new support, in place."""
        last = self.flat.numel() - 1
        self.supports = []
        for row, (numel, size) in enumerate(zip(self.numels, self.case.sizes, strict=True)):
            support_M = torch.randperm(numel, generator=self.draw)[:size].sort().values
            self.supports.append(support_M.to(self.flat.device))
            self.support_RM[row, :size] = self.supports[-1]
            self.support_RM[row, size:] = last - self.offset_R[row]

    def locate(self) -> None:
        """Locate the entries with moments in the supports."""
        for row, (support_M, size) in enumerate(zip(self.supports, self.case.sizes, strict=True)):
            moments = self.torch_moments[row]
            moments.place_RM.copy_(locate(moments.index_RM, support_M[None]))  # type: ignore[union-attr]
            place_M = locate(self.moments.index_RM[row : row + 1, :size], support_M[None])[0]
            self.moments.place_RM[row, :size] = place_M.where(place_M < size, self.m)  # type: ignore[index]

    def take_step(self, gradients: Gradients = normal) -> list[Tensor]:
        """Step both with the same gradients, and return them."""
        self.step += 1
        rule, t, device = self.case.rule, self.step, self.flat.device
        grads = [gradients(size, self.draw).to(device) for size in self.case.sizes]
        grad_RM = self.moments.exp_avg_RM.new_full((len(grads), self.m), math.nan)
        for grad_M, row_M in zip(grads, grad_RM, strict=True):
            row_M[: len(grad_M)] = grad_M
        rates = Rates.at(rule, t)
        step_rows(
            self.flat,
            self.half,
            offset_R=self.offset_R,
            size_R=self.size_R,
            grad_RM=grad_RM,
            support_RM=self.support_RM,
            moments=self.moments,
            scalars=rates.on_device(device),
            rule=rule,
        )
        with ExactRoots():
            for weight, grad_M, support_M, moments in zip(
                self.torch_weights, grads, self.supports, self.torch_moments, strict=True
            ):
                so(
                    [weight],
                    [grad_M.clone()],
                    support_M[None],
                    moments,
                    rule=rule,
                    rates=rates,
                    generator=self.draw,
                )
        return grads

    def assert_equal(self) -> None:
        """Compare all bits; the order of the entries in a row is free. Pads must still be pads."""
        last = self.flat.numel() - 1
        assert_same_bits(self.flat[:last], torch.cat(self.torch_weights))
        assert self.flat[last] == 0
        if self.half is not None:
            assert_same_bits(self.half, self.flat.to(self.half.dtype))
        for row, size in enumerate(self.case.sizes):
            index_M = self.moments.index_RM[row]
            theirs = self.torch_moments[row]
            order, their_order = index_M[:size].argsort(), theirs.index_RM[0].argsort()
            pads = {"index_RM": last - int(self.offset_R[row]), "place_RM": self.m}
            for name, ours_RM in vars(self.moments).items():
                if ours_RM is None:
                    continue
                expected_M = getattr(theirs, name)[0][their_order]
                if name == "place_RM":
                    expected_M = expected_M.where(expected_M < size, self.m)
                assert_same_bits(ours_RM[row, :size][order], expected_M)
                assert (ours_RM[row, size:] == pads.get(name, 0)).all(), name


def assert_same_bits(ours: Tensor, theirs: Tensor) -> None:
    """Compare bits, the sign of 0 included; all NaN are the same."""
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    if ours.is_floating_point():
        integer = torch.int32 if ours.dtype == torch.float32 else torch.int16
        is_nan = ours.isnan()
        assert torch.equal(is_nan, theirs.isnan())
        ours, theirs = (t.masked_fill(is_nan, 0).view(integer) for t in (ours, theirs))
    assert torch.equal(ours, theirs), (ours != theirs).nonzero().flatten().tolist()[:5]
