"""A sampled gradient is a `.grad`: tools that know nothing of sampling see its values."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm

from so_clip import SO
from so_clip.errors import InputError
from so_clip.optim import sampled
from so_clip.optim.sampled import SampledGradient, sampled_gradients
from tests.helpers.sampled_pairs import assert_equal, inputs, mlp, twins


def gradients() -> tuple[list[Tensor], list[Tensor], nn.Module, SO]:
    """Return the entries of dense gradients that a step reads, and the gradients of a twin."""
    (dense, _), (module, optimizer) = twins()
    for one in (dense, module):
        one(inputs(4, 20)).square().sum().backward()
    read = []
    for whole, param in zip(dense.parameters(), module.parameters(), strict=True):
        is_sampled = isinstance(param.grad, SampledGradient)
        read.append(whole.grad.take(param.grad.support_M) if is_sampled else whole.grad)
    return read, [param.grad for param in module.parameters()], module, optimizer


@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("norm_type", [1.0, 2.0, math.inf])
def test_torch_clips_by_the_norm_of_the_sampled_values(
    norm_type: float, foreach: bool | None
) -> None:
    read, grads, module, _ = gradients()
    norm = torch.linalg.vector_norm(torch.cat([part.reshape(-1) for part in read]), norm_type)
    torch.testing.assert_close(get_total_norm(grads, norm_type, foreach=foreach), norm)
    found = clip_grad_norm_(module.parameters(), 0.5, norm_type, True, foreach)
    torch.testing.assert_close(found, norm)
    for part, grad in zip(read, grads, strict=True):
        values = grad.values_M if isinstance(grad, SampledGradient) else grad
        torch.testing.assert_close(values, part * (0.5 / (norm + 1e-6)))


@pytest.mark.parametrize("foreach", [None, False, True])
def test_torch_clips_sampled_values(foreach: bool | None) -> None:
    read, grads, module, _ = gradients()
    clip_grad_value_(module.parameters(), 0.01, foreach)
    for part, grad in zip(read, grads, strict=True):
        values = grad.values_M if isinstance(grad, SampledGradient) else grad
        assert float(values.abs().max()) == 0.01
        torch.testing.assert_close(values, part.clamp(-0.01, 0.01))


@pytest.mark.parametrize("foreach", [None, False, True])
def test_a_sampled_value_that_is_not_finite_is_an_error_if_asked(foreach: bool | None) -> None:
    _, grads, module, _ = gradients()
    grads[0].values_M[2] = torch.nan
    with pytest.raises(RuntimeError, match="non-finite"):
        clip_grad_norm_(module.parameters(), 1.0, error_if_nonfinite=True, foreach=foreach)


def test_steps_clipped_by_torch_are_those_of_the_projects_own_clipping() -> None:
    (one, by_one), (other, by_other) = one_pair(), one_pair()
    for seed in range(7):
        for module, optimizer in ((one, by_one), (other, by_other)):
            optimizer.zero_grad()
            module(inputs(4, 20, seed=seed)).square().mean().backward()
        sampled.clip_grad_norm_(by_one, 1e-3)
        norm = clip_grad_norm_(other.parameters(), 1e-3)
        assert norm > 1e-3
        by_one.step()
        by_other.step()
    assert_equal(one, other)


def one_pair() -> tuple[nn.Module, SO]:
    """Return a model with frozen biases, so that layers compute all gradients that SO reads."""
    module = mlp()
    weights = [param for param in module.parameters() if param.ndim == 2]
    for param in module.parameters():
        param.requires_grad_(param.ndim == 2)
    optimizer = SO(weights, 1e-2, density_ratio=0.05, T=3)
    sampled_gradients(module, optimizer)
    return module, optimizer


def test_hooks_of_a_weight_see_its_sampled_gradient() -> None:
    (dense, by_dense), (module, optimizer) = twins()
    seen = []
    for one in (dense, module):
        one[0].weight.register_hook(lambda grad: grad.clamp(-1e-3, 1e-3))
        one[2].weight.register_hook(lambda grad: None)
        one[2].weight.register_post_accumulate_grad_hook(lambda param: seen.append(param.grad))
    for seed in range(7):
        for one, by in ((dense, by_dense), (module, optimizer)):
            one(inputs(4, 20, seed=seed)).square().mean().backward()
            if by is optimizer:
                assert float(one[0].weight.grad.abs().max()) == 1e-3
            by.step()
            by.zero_grad()
    assert_equal(module, dense)
    assert [type(grad) for grad in seen] == [Tensor, SampledGradient] * 7


def test_logs_and_checks_of_gradients_read_the_sampled_values() -> None:
    read, (grad, *_), module, _ = gradients()
    values = read[0]
    torch.testing.assert_close(grad.data.norm(2), values.norm(2))
    torch.testing.assert_close(grad.detach().abs().max(), values.abs().max())
    torch.testing.assert_close(grad.sum().item(), values.sum().item())
    assert torch.isfinite(grad).all()
    torch.testing.assert_close((grad / 2).clone().values_M, values / 2)
    torch.testing.assert_close((grad + torch.ones(grad.shape)).values_M, values + 1)
    assert (-grad).float().dtype == torch.float32
    assert "SampledGradient(shape=(30, 20)" in repr(grad)
    grad.values_M[0] = torch.inf
    assert not torch.isfinite(grad).all()
    module.zero_grad(set_to_none=False)
    assert grad is module[0].weight.grad
    assert not grad.values_M.any()


def test_a_sampled_gradient_takes_the_memory_of_its_values() -> None:
    _, (grad, *_), module, _ = gradients()
    assert grad.shape == module[0].weight.shape
    assert grad.untyped_storage().nbytes() == 0
    assert len(grad.values_M) == 30


@pytest.mark.parametrize(
    "use",
    [
        lambda grad: grad @ torch.ones(20, dtype=torch.float64),
        lambda grad: grad.sum(0),
        lambda grad: grad.norm(dim=1),
        lambda grad: grad.view(-1),
        lambda grad: torch.zeros(30, 20, dtype=torch.float64).add_(grad),
        lambda grad: grad.mul_(torch.ones(20, dtype=torch.float64)),
        lambda grad: grad + SampledGradient(grad, grad.support_M.clone(), grad.values_M),
        lambda grad: torch._foreach_add([grad], [grad]),
    ],
    ids=["product", "rows", "norms of rows", "view", "into", "broadcast", "other support", "lists"],
)
def test_a_function_that_needs_other_entries_is_refused(use) -> None:
    _, (grad, *_), _, _ = gradients()
    with pytest.raises(
        RuntimeError, match=r"\(30, 20\) is sampled, and .* values are grad\.values_M"
    ):
        use(grad)


def test_an_optimizer_that_reads_whole_gradients_refuses_sampled_ones() -> None:
    _, _, module, _ = gradients()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(RuntimeError, match="is sampled"):
        torch.optim.SGD(module.parameters(), 0.1, momentum=0.9).step()
    assert torch.equal(module[0].weight, before["0.weight"])


def test_bfloat16_weights_keep_float32_values() -> None:
    module = mlp(torch.bfloat16)
    sampled_gradients(module, SO(module.parameters(), density_ratio=0.05))
    module(inputs(4, 20, dtype=torch.bfloat16)).square().sum().backward()
    grad = module[0].weight.grad
    assert (grad.dtype, grad.values_M.dtype) == (torch.bfloat16, torch.float32)
    expected = grad.values_M.clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(()))
    optimizer = SO(module.parameters(), density_ratio=0.05)
    scaler.unscale_(optimizer)
    torch.testing.assert_close(grad.values_M, expected / 4)
    assert grad.detach().dtype == torch.bfloat16


def test_the_estimate_of_the_dense_norm_is_unbiased() -> None:
    draw = torch.Generator().manual_seed(0)
    whole = torch.randn(40, 50, generator=draw, dtype=torch.float64)
    weight = nn.Parameter(torch.zeros(40, 50, dtype=torch.float64))
    bias = nn.Parameter(torch.zeros(40, dtype=torch.float64))
    squares = []
    for seed in range(400):
        optimizer = SO([weight, bias], density_ratio=0.01, seed=seed)
        support_M = optimizer.support(weight)
        weight.grad = SampledGradient(weight, support_M, whole.take(support_M))
        bias.grad = torch.ones_like(bias)  # whole: known exactly, although SO samples the bias
        squares.append(float(sampled.clip_grad_norm_(optimizer, 1e9, estimate_dense=True)) ** 2)
        plain = sampled.clip_grad_norm_(optimizer, 1e9)
        read = torch.cat([weight.grad.values_M, bias.grad.take(optimizer.support(bias))])
        torch.testing.assert_close(plain, read.norm())
    dense = float(whole.square().sum()) + 40
    mean, spread = torch.tensor(squares).mean(), torch.tensor(squares).std() / math.sqrt(400)
    assert abs(float(mean) - dense) < 3 * float(spread)
    assert float(spread) < 0.02 * dense


def test_clipping_by_the_estimate_scales_the_sampled_values() -> None:
    module, optimizer = one_pair()
    module(inputs(4, 20)).square().sum().backward()
    grads = [param.grad for param in module.parameters() if param.grad is not None]
    before = [grad.values_M.clone() for grad in grads]
    factors = [grad.numel() / len(grad.values_M) for grad in grads]
    norm = sum(k * v.square().sum() for k, v in zip(factors, before, strict=True)).sqrt()
    torch.testing.assert_close(sampled.clip_grad_norm_(optimizer, 0.5, estimate_dense=True), norm)
    for grad, values in zip(grads, before, strict=True):
        torch.testing.assert_close(grad.values_M, values * (0.5 / (norm + 1e-6)))


def test_no_estimate_from_a_support_of_important_entries() -> None:
    layer = nn.Linear(30, 20)
    optimizer = SO(layer.parameters(), density_ratio=0.1, gradient_selection="importance", T=0)
    layer(torch.ones(2, 30)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    sampled_gradients(layer, optimizer)
    layer(torch.ones(2, 30)).square().sum().backward()
    with pytest.raises(InputError, match=r"gradient_selection=importance.*random supports"):
        sampled.clip_grad_norm_(optimizer, 1.0, estimate_dense=True)
    assert sampled.clip_grad_norm_(optimizer, 1e9) > 0
