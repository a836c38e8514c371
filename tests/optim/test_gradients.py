"""Gradients given whole, sampled or both, and gradients that SO refuses."""

import pytest
import torch
from torch import Tensor, nn

from so_clip import SO
from so_clip.optim.gradients import add_sampled_gradient
from so_clip.optim.sampled_gradient import SampledGradient


def pair(**options: object) -> list[tuple[nn.Parameter, SO]]:
    """Return two equal tensors, each with its optimizer."""
    start = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)).t()
    twins = [nn.Parameter(start.clone()) for _ in range(2)]
    return [(param, SO([param], 0.1, density_ratio=0.2, T=2, **options)) for param in twins]


def add_sample(optimizer: SO, param: Tensor, grad: Tensor) -> None:
    """Add the gradient on the coming support, as a layer computes it."""
    support = optimizer.support(param)
    assert support is not None
    add_sampled_gradient(param, support, grad.reshape(-1)[support])


@pytest.mark.parametrize("foreach", [None, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("moment_selection", ["importance", "random", "dense", "none"])
def test_sampled_gradients_take_the_steps_of_whole_ones(
    moment_selection: str, weight_decay: float, foreach: bool | None
) -> None:
    options = {"moment_selection": moment_selection, "weight_decay": weight_decay}
    (whole, by_whole), (sampled, by_sample) = pair(**options, foreach=foreach)
    draw = torch.Generator().manual_seed(1)
    for _ in range(7):
        whole.grad = torch.randn(whole.shape, generator=draw)
        add_sample(by_sample, sampled, whole.grad)
        by_whole.step()
        by_sample.step()
        assert sampled.grad is None
        assert torch.equal(whole, sampled)


@pytest.mark.parametrize("sample_first", [False, True])
def test_sampled_and_whole_gradients_add_up(sample_first: bool) -> None:
    # Two layers share a weight, and one of them samples.
    (whole, by_whole), (tied, by_both) = pair()
    for _ in range(3):
        one, other = torch.randn(2, *whole.shape, generator=torch.Generator().manual_seed(2))
        whole.grad = one + other
        if sample_first:
            add_sample(by_both, tied, other)
        (tied * one).sum().backward()
        if not sample_first:
            add_sample(by_both, tied, other)
        by_whole.step()
        by_both.step()
        assert torch.equal(whole, tied)


def test_low_precision_weights_take_float32_samples() -> None:
    param = nn.Parameter(torch.zeros(100, dtype=torch.bfloat16))
    optimizer = SO([param], density_ratio=0.05)
    values = torch.linspace(1, 2, 5) + 2**-12
    add_sampled_gradient(param, optimizer.support(param), values)
    optimizer.step()
    state = optimizer.state[param]
    order = state["index"].argsort()
    assert torch.equal(state["exp_avg"][order], values * (1 - 0.9))


def test_a_layer_can_compute_only_what_is_asked_for() -> None:
    weight = nn.Parameter(torch.randn(4, 5, generator=torch.Generator().manual_seed(3)))
    optimizer = SO([weight], 0.1, density_ratio=0.3, T=1)
    reference = nn.Parameter(weight.detach().clone())
    by_whole = SO([reference], 0.1, density_ratio=0.3, T=1)
    draw = torch.Generator().manual_seed(4)
    for _ in range(4):
        inputs_BI = torch.randn(8, 5, generator=draw)
        outputs_BO = inputs_BI @ weight.detach().t()
        outputs_BO.requires_grad_()
        (grad_BO,) = torch.autograd.grad(outputs_BO.square().sum(), outputs_BO)
        rows, columns = optimizer.support(weight) // 5, optimizer.support(weight) % 5
        values_M = (grad_BO[:, rows] * inputs_BI[:, columns]).sum(0)
        add_sampled_gradient(weight, optimizer.support(weight), values_M)
        optimizer.step()

        by_whole.zero_grad()
        (inputs_BI @ reference.t()).square().sum().backward()
        by_whole.step()
        torch.testing.assert_close(weight, reference)


def test_zero_grad_clears_samples() -> None:
    (param, optimizer), _ = pair()
    add_sample(optimizer, param, torch.ones(param.shape))
    optimizer.zero_grad()
    assert param.grad is None
    before = param.detach().clone()
    optimizer.step()
    assert torch.equal(param, before)


def test_the_support_is_the_same_tensor_until_it_is_redrawn() -> None:
    (param, optimizer), _ = pair()
    support = optimizer.support(param)
    assert support is optimizer.support(param)
    param.grad = torch.ones(param.shape)
    optimizer.step()
    assert optimizer.support(param) is support
    optimizer.step()
    assert not torch.equal(optimizer.support(param), support)


@pytest.mark.parametrize(
    ("options", "known"),
    [
        ({}, [True] * 4),
        ({"density_ratio": 1}, [False] * 4),
        ({"gradient_selection": "dense"}, [False] * 4),
        ({"gradient_selection": "importance"}, [False, True, False, True]),
        ({"gradient_selection": "importance", "T": 0}, [False, True, True, True]),
    ],
    ids=str,
)
def test_a_step_that_reads_the_whole_gradient_has_no_support(
    options: dict[str, object], known: list[bool]
) -> None:
    param = nn.Parameter(torch.zeros(50))
    optimizer = SO([param], **{"density_ratio": 0.1, "T": 2, **options})
    found = []
    for _ in known:
        found.append(optimizer.support(param) is not None)
        param.grad = torch.ones(50)
        optimizer.step()
    assert found == known


def _sparse(param: nn.Parameter) -> None:
    param.grad = torch.eye(10).to_sparse()


def _unexpected(param: nn.Parameter) -> None:
    param.grad = SampledGradient(param, torch.arange(10), torch.zeros(10))


@pytest.mark.parametrize(
    ("give", "options", "message"),
    [
        (_sparse, {}, r"shape \(10, 10\) is torch\.sparse_coo: .* does not support sparse"),
        (_sparse, {"gradient_selection": "dense"}, "does not support sparse"),
        (_unexpected, {}, "on a support that has been drawn again"),
        (_unexpected, {"gradient_selection": "importance"}, "reads the whole gradient"),
        (_unexpected, {"density_ratio": 1}, "reads the whole gradient"),
    ],
    ids=["sparse", "sparse for dense", "other support", "not yet chosen", "dense tensor"],
)
def test_bad_gradients(give: object, options: dict[str, object], message: str) -> None:
    param = nn.Parameter(torch.zeros(10, 10))
    optimizer = SO([param], **{"density_ratio": 0.1, **options})
    give(param)
    with pytest.raises(RuntimeError, match=message):
        optimizer.step()
    assert (param == 0).all()
    assert optimizer.state[param]["step"] == 0


def test_a_tensor_of_another_optimizer_has_no_support() -> None:
    (_, optimizer), _ = pair()
    with pytest.raises(ValueError, match=r"shape \(2, 3\) is not in this optimizer"):
        optimizer.support(nn.Parameter(torch.zeros(2, 3)))
