"""SO against its definition in float64, against Adam, and its two implementations."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from so_clip import SO
from tests.helpers.so_steps import gradients, mask, parameters, run
from tests.oracles.so_oracle import PruneFirst, Settings, UpdateFirst

ORACLES = {"prune_first": PruneFirst, "update_first": UpdateFirst}
# Rounding of one step in units of lr: of float32 arithmetic, then of the weights' dtype.
TOLERANCE = {
    torch.float64: 1e-11,
    torch.float32: 2e-4,
    torch.bfloat16: 3.0,
    torch.float16: 0.5,
}


def flat(tensor: Tensor) -> np.ndarray:
    """The tensor in float64, row-major."""
    return tensor.detach().double().reshape(-1).numpy().copy()


class Definition:
    """One oracle for each tensor; from SO it takes only the drawn supports."""

    def __init__(self, params: list[nn.Parameter], options: dict[str, Any]) -> None:
        self.options = {"density_ratio": 0.2, "T": 3, "order": "prune_first", **options}
        self.gradient_selection = self.options.pop("gradient_selection", "random")
        self.T = self.options.pop("T")
        self.options.pop("foreach", None)
        ratio, order = self.options.pop("density_ratio"), self.options.pop("order")
        counts = [max(1, int(param.numel() * ratio)) for param in params]
        self.oracles = [
            ORACLES[order](flat(param), Settings(count, **self.options))
            for param, count in zip(params, counts, strict=True)
        ]
        self.important: dict[int, np.ndarray] = {}

    def support(self, i: int, grad: np.ndarray, drawn: Tensor | None, step: int) -> np.ndarray:
        """Return the mask of the entries read in this step."""
        count = self.oracles[i].settings.count
        if self.gradient_selection == "dense" or count == grad.size:
            return np.ones(grad.size, dtype=bool)
        if self.gradient_selection == "random":
            assert drawn is not None
            return mask(drawn, grad.size)
        if step % self.T == 0:
            largest = sorted(range(grad.size), key=lambda j: (-abs(grad[j]), j))[:count]
            self.important[i] = mask(torch.tensor(largest), grad.size)
        return self.important[i]


def check_against_definition(dtype: torch.dtype, steps: int, **options: Any) -> None:
    """Run SO and the oracles together, and compare the weights after every step."""
    params = parameters(dtype)
    options = {"density_ratio": 0.2, "T": 3, "lr": 1e-2, **options}
    definition = Definition(params, options)
    optimizer = SO(params, **options, seed=5)
    for step, grads in enumerate(gradients(params, steps)):
        drawn = [optimizer.support(param) for param in params]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizer.step()
        for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
            oracle = definition.oracles[i]
            index = optimizer.state[param].get("index")
            kept = None if index is None else mask(index, param.numel())
            if kept is None and options.get("moment_selection") == "random":
                kept = np.ones(param.numel(), dtype=bool)
            oracle.step(flat(grad), definition.support(i, flat(grad), drawn[i], step), kept)
            # Rounding to the weights' dtype is part of the definition; otherwise errors add up.
            oracle.weight = flat(torch.from_numpy(oracle.weight).to(dtype))
            error = np.abs(flat(param) - oracle.weight).max()
            assert error <= TOLERANCE[dtype] * options["lr"], (step, tuple(param.shape))
            if index is not None:
                assert (kept == oracle.remembered).all(), (step, tuple(param.shape))
                # float32 has 0.999 to 1.3e-8; relative to 1 - 0.999 this is 1.3e-5.
                moments = zip(("exp_avg", "exp_avg_sq"), (oracle.mu, oracle.nu), strict=True)
                for key, expected in moments:
                    ours = flat(optimizer.state[param][key])
                    np.testing.assert_allclose(ours, expected[index], rtol=3e-5, atol=1e-8)


@pytest.mark.fast_cases(8)
@pytest.mark.parametrize("order", ORACLES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("bias_correction", ["step", "age"])
def test_weights_and_moments_are_the_definitions(
    order: str, bias_correction: str, dtype: torch.dtype
) -> None:
    check_against_definition(dtype, 30, order=order, bias_correction=bias_correction)


@pytest.mark.slow
@pytest.mark.parametrize("order", ORACLES)
def test_the_definition_over_200_steps(order: str) -> None:
    check_against_definition(torch.float32, 200, order=order, bias_correction="age")


@pytest.mark.fast_cases(16)
@pytest.mark.parametrize("order", ORACLES)
@pytest.mark.parametrize("moment_selection", ["importance", "random", "dense", "none"])
@pytest.mark.parametrize("gradient_selection", ["random", "importance", "dense"])
def test_every_selection(order: str, gradient_selection: str, moment_selection: str) -> None:
    check_against_definition(
        torch.float64,
        20,
        order=order,
        gradient_selection=gradient_selection,
        moment_selection=moment_selection,
        bias_correction="age" if order == "update_first" else "step",
    )


@pytest.mark.fast_cases(6)
@pytest.mark.parametrize(
    "options",
    [
        {"weight_decay": 0.3},
        {"maximize": True, "weight_decay": 0.3},
        {"betas": (0.0, 0.0)},
        {"betas": (0.0, 0.9), "bias_correction": "age"},
        {"betas": (0.4, 0.3), "bias_correction": "age", "order": "update_first"},
        {"eps": 0.0, "order": "update_first"},
        {"bias_correction": "twice"},
        {"bias_correction": "twice", "order": "update_first", "weight_decay": 0.3},
        {"bias_correction": "twice", "density_ratio": 1},
        {"T": 1},
        {"T": 0},
        {"density_ratio": 1e-9},
        {"density_ratio": 0.999, "order": "update_first"},
    ],
    ids=str,
)
@pytest.mark.parametrize("foreach", [None, False])
def test_every_setting(foreach: bool | None, options: dict[str, Any]) -> None:
    check_against_definition(torch.float64, 20, foreach=foreach, **options)


@pytest.mark.fast_cases(4)
@pytest.mark.parametrize("order", ORACLES)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_density_1_is_adam(
    dtype: torch.dtype, order: str, weight_decay: float, maximize: bool
) -> None:
    ours, adams = parameters(dtype), parameters(dtype)
    common = {"lr": 1e-2, "weight_decay": weight_decay, "maximize": maximize}
    run(ours, SO(ours, density_ratio=1, order=order, **common), 100)
    run(adams, torch.optim.Adam(adams, **common), 100)
    for our, adam in zip(ours, adams, strict=True):
        torch.testing.assert_close(our, adam, rtol=0, atol=100 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("foreach", [None, False])
def test_a_bias_corrected_twice_makes_the_first_dense_steps_larger_than_adams(foreach) -> None:
    twice, adams = [nn.Parameter(torch.zeros(3, dtype=torch.float64)) for _ in range(2)]
    ours = SO([twice], 1e-3, density_ratio=1, bias_correction="twice", foreach=foreach)
    adam = torch.optim.Adam([adams], 1e-3)
    ratios = []
    for (grad,) in gradients([twice], 30):
        before = twice.detach().clone(), adams.detach().clone()
        twice.grad, adams.grad = grad.clone(), grad.clone()
        ours.step()
        adam.step()
        ratios.append((twice - before[0]) / (adams - before[1]))
    expected = {1: 10.0, 2: 5.26, 5: 2.44, 30: 1.04}
    for step, ratio in expected.items():
        torch.testing.assert_close(
            ratios[step - 1], torch.full_like(twice, ratio), rtol=0, atol=5e-3
        )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@settings(max_examples=12)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    density_ratio=st.floats(1e-3, 1.0),
    T=st.integers(0, 4),
    options=st.fixed_dictionaries(
        {
            "order": st.sampled_from(["prune_first", "update_first"]),
            "bias_correction": st.sampled_from(["step", "age", "twice"]),
            "gradient_selection": st.sampled_from(["random", "importance", "dense"]),
            "moment_selection": st.sampled_from(["importance", "random", "dense", "none"]),
            "weight_decay": st.sampled_from([0.0, 0.1]),
        }
    ),
    ties=st.booleans(),
)
def test_both_implementations_agree_bit_for_bit(
    dtype: torch.dtype,
    sizes: list[int],
    density_ratio: float,
    T: int,
    options: dict[str, Any],
    ties: bool,
) -> None:
    pair = []
    for foreach in (None, False):
        draw = torch.Generator().manual_seed(2)
        params = [nn.Parameter(torch.randn(n, generator=draw).to(dtype)) for n in sizes]
        optimizer = SO(params, 0.1, density_ratio=density_ratio, T=T, foreach=foreach, **options)
        for step in range(9):
            for i, param in enumerate(params):
                grad = torch.randn(param.shape, generator=draw)
                # One tensor has no gradient in some steps; this regroups the others.
                skip = i == 1 and step % 3 == 2
                param.grad = None if skip else (grad.sign() if ties else grad).to(dtype)
            optimizer.step()
        pair.append((params, optimizer))
    for one, other in zip(*(params for params, _ in pair), strict=True):
        assert torch.equal(one, other)
        states = [optimizer.state[p] for (_, optimizer), p in zip(pair, (one, other), strict=True)]
        assert states[0].keys() == states[1].keys()
        if "index" in states[0]:
            assert set(states[0]["index"].tolist()) == set(states[1]["index"].tolist())


@settings(max_examples=40)
@given(
    numel=st.integers(2, 60),
    density_ratio=st.floats(0.01, 0.99),
    order=st.sampled_from(["prune_first", "update_first"]),
    T=st.integers(0, 3),
)
def test_a_step_moves_few_entries(numel: int, density_ratio: float, order: str, T: int) -> None:
    count = max(1, int(numel * density_ratio))
    param = nn.Parameter(torch.zeros(numel))
    optimizer = SO([param], 0.1, density_ratio=density_ratio, order=order, T=T)
    remembered: set[int] = set()
    for (grad,) in gradients([param], 8):
        seen = set(optimizer.support(param).tolist())
        assert len(seen) == count
        before, param.grad = param.detach().clone(), grad
        optimizer.step()
        moved = set((param != before).nonzero().flatten().tolist())
        kept = set(optimizer.state[param]["index"].tolist())
        assert len(kept) == count
        assert kept <= remembered | seen
        assert moved <= (kept if order == "prune_first" else remembered | seen)
        remembered = kept
