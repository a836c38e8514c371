"""SO as a torch.optim.Optimizer: supports, groups, seeds, closures, schedulers and scalers."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from so_clip import SO
from tests.helpers.so_steps import gradients, mask, parameters, run


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


def test_named_parameters_train_like_unnamed_ones() -> None:
    nets = [nn.Sequential(nn.Linear(30, 20), nn.LayerNorm(20)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    named = SO(nets[0].named_parameters(), 0.1, density_ratio=0.02)
    plain = SO(nets[1].parameters(), 0.1, density_ratio=0.02)
    start = [param.detach().clone() for param in nets[0].parameters()]
    for net, optimizer in zip(nets, (named, plain), strict=True):
        run([*net.parameters()], optimizer, 3)
    assert named.param_groups[0]["param_names"] == [*dict(nets[0].named_parameters())]
    assert all(map(torch.equal, nets[0].parameters(), nets[1].parameters()))
    moved = [int((a != b).sum()) for a, b in zip(start, nets[0].parameters(), strict=True)]
    assert moved == [12, 1, 1, 1]  # a vector has at least one entry in its support
    named.load_state_dict(named.state_dict())
    plain.load_state_dict(named.state_dict())
    for net, optimizer in zip(nets, (named, plain), strict=True):
        run([*net.parameters()], optimizer, 3)
    assert all(map(torch.equal, nets[0].parameters(), nets[1].parameters()))


def test_supports_depend_on_the_seed_alone() -> None:
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


def test_a_grad_scaler_skips_overflowed_steps() -> None:
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


def test_infinite_gradients_keep_the_indices_valid() -> None:
    param = nn.Parameter(torch.zeros(40))
    optimizer = SO([param], density_ratio=0.2, T=1)
    for value in (torch.nan, torch.inf, -torch.inf, 0.0):
        param.grad = torch.full((40,), value)
        optimizer.step()
        assert mask(optimizer.state[param]["index"], 40).sum() == 8


def test_tensors_without_a_gradient_or_entries_are_skipped() -> None:
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
