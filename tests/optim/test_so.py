"""SO against its definition, against Adam, and as a torch.optim.Optimizer."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from so_clip import SO
from tests.oracles.so_oracle import PruneFirst, Settings, UpdateFirst

SHAPES = [(), (1,), (3,), (90,), (9, 10), (3, 5, 4), (2, 3, 5, 4)]
ORACLES = {"prune_first": PruneFirst, "update_first": UpdateFirst}
# Of one step's rounding, in units of lr: float32 arithmetic, then what the weights can hold.
TOLERANCE = {
    torch.float64: 1e-11,
    torch.float32: 2e-4,
    torch.bfloat16: 3.0,
    torch.float16: 0.5,
}


def parameters(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[nn.Parameter]:
    """One tensor of each shape, and two that are not contiguous."""
    draw = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=draw) for shape in SHAPES]
    tensors.append(torch.randn(8, 11, generator=draw).t())
    tensors.append(torch.randn(4, 3, 2, 2, generator=draw).to(memory_format=torch.channels_last))
    return [nn.Parameter(tensor.to(dtype)) for tensor in tensors]


def gradients(params: list[nn.Parameter], steps: int, seed: int = 1) -> Iterator[list[Tensor]]:
    """Gradients of the parameters' type, some of them not contiguous, step after step."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        grads = [torch.randn(param.shape, generator=draw).to(param.dtype) for param in params]
        yield [grad.mT.contiguous().mT if grad.ndim == 2 else grad for grad in grads]


def run(params: list[nn.Parameter], optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Step by the same gradients as any other run of as many steps."""
    for grads in gradients(params, steps):
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizer.step()


def flat(tensor: Tensor) -> np.ndarray:
    """The tensor in float64, row-major."""
    return tensor.detach().double().reshape(-1).numpy().copy()


def mask(index_M: Tensor, numel: int) -> np.ndarray:
    """A dense mask of an index set, which must be one."""
    assert index_M.dtype == torch.int64
    chosen = np.zeros(numel, dtype=bool)
    chosen[index_M.numpy()] = True
    assert chosen.sum() == len(index_M)
    return chosen


class Definition:
    """An oracle for each tensor, told of the optimizer's draws alone."""

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
        """The mask of what is seen in this step."""
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
    """Run SO and the oracles side by side; weights are compared after every step."""
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
            # What the weights can hold is part of the definition: else errors would pile up.
            oracle.weight = flat(torch.from_numpy(oracle.weight).to(dtype))
            error = np.abs(flat(param) - oracle.weight).max()
            assert error <= TOLERANCE[dtype] * options["lr"], (step, tuple(param.shape))
            if index is not None:
                assert (kept == oracle.remembered).all(), (step, tuple(param.shape))
                # float32 holds 0.999 to 1.3e-8, of which 1 - 0.999 is 1.3e-5.
                moments = zip(("exp_avg", "exp_avg_sq"), (oracle.mu, oracle.nu), strict=True)
                for key, expected in moments:
                    ours = flat(optimizer.state[param][key])
                    np.testing.assert_allclose(ours, expected[index], rtol=3e-5, atol=1e-8)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("bias_correction", ["step", "age"])
@pytest.mark.parametrize("order", ORACLES)
def test_the_definition_over_200_steps(
    order: str, bias_correction: str, dtype: torch.dtype
) -> None:
    check_against_definition(dtype, 200, order=order, bias_correction=bias_correction)


@pytest.mark.parametrize("moment_selection", ["importance", "random", "dense", "none"])
@pytest.mark.parametrize("gradient_selection", ["random", "importance", "dense"])
@pytest.mark.parametrize("order", ORACLES)
def test_the_ablations(order: str, gradient_selection: str, moment_selection: str) -> None:
    check_against_definition(
        torch.float64,
        40,
        order=order,
        gradient_selection=gradient_selection,
        moment_selection=moment_selection,
        bias_correction="age" if order == "update_first" else "step",
    )


@pytest.mark.parametrize(
    "options",
    [
        {"weight_decay": 0.3},
        {"maximize": True, "weight_decay": 0.3},
        {"betas": (0.0, 0.0)},
        {"betas": (0.0, 0.9), "bias_correction": "age"},
        {"betas": (0.4, 0.3), "bias_correction": "age", "order": "update_first"},
        {"eps": 0.0, "order": "update_first"},
        {"T": 1},
        {"T": 0},
        {"density_ratio": 1e-9},
        {"density_ratio": 0.999, "order": "update_first"},
    ],
    ids=str,
)
@pytest.mark.parametrize("foreach", [None, False])
def test_the_settings(foreach: bool | None, options: dict[str, Any]) -> None:
    check_against_definition(torch.float64, 40, foreach=foreach, **options)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("order", ORACLES)
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


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@settings(max_examples=12, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    density_ratio=st.floats(1e-3, 1.0),
    T=st.integers(0, 4),
    options=st.fixed_dictionaries(
        {
            "order": st.sampled_from(["prune_first", "update_first"]),
            "bias_correction": st.sampled_from(["step", "age"]),
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
                # One tensor goes without a gradient now and then, which regroups the others.
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


@settings(max_examples=40, deadline=None)
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


def test_a_support_stays_for_T_steps() -> None:
    def supports(T: int) -> list[list[int]]:
        param = nn.Parameter(torch.zeros(1000))
        optimizer = SO([param], density_ratio=0.01, T=T)
        drawn = []
        for (grad,) in gradients([param], 12):
            drawn.append(optimizer.support(param).tolist())
            param.grad = grad
            optimizer.step()
        return drawn

    for T in (1, 4, 5):
        drawn = supports(T)
        for step, support in enumerate(drawn):
            assert (support == drawn[step - 1]) == (step % T != 0 and step > 0)
    assert supports(0) == [supports(1)[0]] * 12


def test_groups_have_their_own_settings() -> None:
    params = [nn.Parameter(torch.zeros(100)) for _ in range(3)]
    optimizer = SO(
        [
            {"params": params[:1], "density_ratio": 0.5, "T": 1, "lr": 0.0},
            {"params": params[1:2], "density_ratio": 1},
            {"params": params[2:]},
        ],
        lr=0.1,
        density_ratio=0.03,
        T=0,
    )
    first = [optimizer.support(param) for param in params]
    run(params, optimizer, 1)
    assert [int((param != 0).sum()) for param in params] == [0, 100, 3]
    assert len(first[0]) == 50
    assert first[1] is None
    assert not torch.equal(first[0], optimizer.support(params[0]))
    assert torch.equal(first[2], optimizer.support(params[2]))

    late = nn.Parameter(torch.zeros(100))
    optimizer.add_param_group({"params": [late], "density_ratio": 0.07})
    assert len(optimizer.support(late)) == 7
    run([*params, late], optimizer, 1)
    assert int((late != 0).sum()) == 7


def test_seeds_draw_supports_whoever_asks_and_on_any_type() -> None:
    def supports(seed: int, dtype: torch.dtype, asked_first: int) -> list[list[int]]:
        params = parameters(dtype)
        optimizer = SO(params, density_ratio=0.3, T=1, seed=seed)
        optimizer.support(params[asked_first])
        run(params, optimizer, 2)
        found = (optimizer.support(param) for param in params)
        return [support.tolist() for support in found if support is not None]

    assert supports(0, torch.float32, 3) == supports(0, torch.float64, 5)
    assert supports(0, torch.float32, 3) != supports(1, torch.float32, 3)


@pytest.mark.parametrize("moment_selection", ["importance", "random"])
def test_the_global_random_state_is_untouched(moment_selection: str) -> None:
    params = parameters()
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    run(params, SO(params, density_ratio=0.1, T=1, moment_selection=moment_selection), 3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


def test_a_closure_is_evaluated_with_gradients() -> None:
    param = nn.Parameter(torch.ones(50))
    optimizer = SO([param], 0.1, density_ratio=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 50
    assert optimizer.step(closure).item() < 50


def test_a_scheduler_sets_the_rate() -> None:
    param = nn.Parameter(torch.zeros(10))
    optimizer = SO([param], 0.5, density_ratio=0.1, T=0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=2, eta_min=0.0)
    moves = []
    for _ in range(3):
        before, param.grad = param.detach().clone(), torch.ones(10)
        optimizer.step()
        scheduler.step()
        moves.append((before - param).abs().max().item())
    assert moves == pytest.approx([0.5, 0.25, 0.0], abs=1e-6)


def test_a_grad_scaler_skips_what_overflowed() -> None:
    param = nn.Parameter(torch.zeros(100))
    plain = nn.Parameter(torch.zeros(100))
    optimizer, reference = SO([param], density_ratio=0.1), SO([plain], density_ratio=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step, (grad,) in enumerate(gradients([param], 4)):
        param.grad = scaler.scale(grad)
        if step == 2:
            param.grad[0] = torch.inf
        else:
            plain.grad = grad
            reference.step()
        scaler.step(optimizer)
        scaler.update()
    assert torch.equal(param, plain)
    assert optimizer.state[param]["step"] == 3


def test_gradients_that_are_not_finite_break_no_index() -> None:
    param = nn.Parameter(torch.zeros(40))
    optimizer = SO([param], density_ratio=0.2, T=1)
    for value in (torch.nan, torch.inf, -torch.inf, 0.0):
        param.grad = torch.full((40,), value)
        optimizer.step()
        assert mask(optimizer.state[param]["index"], 40).sum() == 8


def test_tensors_without_a_gradient_or_entries_are_passed_over() -> None:
    frozen = nn.Parameter(torch.ones(30), requires_grad=False)
    empty, idle, used = (nn.Parameter(torch.ones(n)) for n in (0, 30, 30))
    optimizer = SO([frozen, empty, idle, used], density_ratio=0.1)
    empty.grad, used.grad = torch.ones(0), torch.ones(30)
    optimizer.step()
    assert (frozen == 1).all()
    assert (idle == 1).all()
    assert optimizer.state[idle]["step"] == 0
    assert int((used != 1).sum()) == 3


def test_random_moments_keep_a_uniform_subset_of_the_union() -> None:
    # Two of six entries; where both supports differ, two of four are kept: six ways.
    params = [nn.Parameter(torch.zeros(6)) for _ in range(4000)]
    optimizer = SO(params, density_ratio=0.34, T=1, moment_selection="random")
    first = [optimizer.support(param).tolist() for param in params]
    run(params, optimizer, 1)
    second = [optimizer.support(param).tolist() for param in params]
    run(params, optimizer, 1)
    counts = dict.fromkeys([(a, b) for a in range(4) for b in range(a)], 0)
    for param, old, new in zip(params, first, second, strict=True):
        union = sorted({*old, *new})
        if len(union) == 4:
            lower, upper = sorted(optimizer.state[param]["index"].tolist())
            counts[union.index(upper), union.index(lower)] += 1
    expected = sum(counts.values()) / 6
    assert expected > 200
    assert sum((count - expected) ** 2 for count in counts.values()) / expected < 25
