"""Half-precision copies of weights and biases give the results of a new cast, bit for bit."""

import copy

import pytest
import torch
from torch import nn

from so_clip import SO
from so_clip.optim.arena import Arena
from so_clip.optim.rounded import bias_to_add, weight_to_multiply
from so_clip.optim.sampled import sampled_gradients
from tests.helpers.dispatched import Dispatched
from tests.helpers.sampled_pairs import filled, inputs

HALF = torch.bfloat16


def _model(trains_bias: bool) -> nn.Module:
    model = filled(nn.Sequential(nn.Linear(64, 48), nn.GELU(), nn.Linear(48, 64)))
    for place in (0, 2):
        model[place].bias.requires_grad_(trains_bias)
    return model


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _backward(model: nn.Module, seed: int = 0) -> list[torch.Tensor]:
    """Return the output and all gradients of a pass under autocast."""
    x = inputs(5, 64, seed=seed, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", HALF):
        y = model(x)
    y.float().square().sum().backward()
    grads = [parameter.grad for parameter in _trained(model)]
    return [y, x.grad, *(getattr(grad, "values_M", grad) for grad in grads)]


@pytest.mark.parametrize("trains_bias", [False, True])
@pytest.mark.parametrize("whole", [None, True])
def test_results_with_copies_are_those_of_casting_bit_for_bit(trains_bias, whole):
    plain, model = _model(trains_bias), _model(trains_bias)
    for item in (plain, model):
        sampled_gradients(item, SO(_trained(item), density_ratio=0.01), whole=whole)
    arena = Arena(_trained(model))
    arena.add_half(HALF)
    for seed in range(3):
        found, expected = _backward(model, seed), _backward(plain, seed)
        assert all(map(torch.equal, found, expected))
        with torch.no_grad():
            for item in (plain, model):
                for layer in (item[0], item[2]):
                    layer.weight[3, 5] += 1  # other code writes: the copy is outdated
                item.zero_grad()


def test_a_weight_without_a_copy_of_this_dtype_is_rounded():
    model = _model(trains_bias=False)
    assert weight_to_multiply(model[0].weight, HALF).data_ptr() == model[0].weight.data_ptr()
    arena = Arena(_trained(model))
    arena.add_half(torch.float16)
    assert weight_to_multiply(model[0].weight, HALF).dtype == torch.float32
    copied = weight_to_multiply(model[0].weight, torch.float16)
    assert torch.equal(copied, model[0].weight.half())
    assert copied.untyped_storage()._cdata == arena.half.untyped_storage()._cdata


def test_a_frozen_bias_is_rounded_once_until_it_changes():
    bias = filled(nn.Linear(4, 6)).bias.requires_grad_(False)
    rounded_O = bias_to_add(bias, HALF)
    assert torch.equal(rounded_O, bias.to(HALF))
    assert bias_to_add(bias, HALF) is rounded_O
    other = copy.deepcopy(bias)
    assert bias_to_add(other, HALF) is not rounded_O
    with torch.no_grad():
        bias.add_(1)
    assert torch.equal(bias_to_add(bias, HALF), bias.to(HALF))
    assert bias_to_add(bias, HALF) is rounded_O  # a captured step reads this address
    bias.data = bias.data * 3  # as `module.to(...)` does
    assert torch.equal(bias_to_add(bias, HALF), bias.to(HALF))
    assert torch.equal(bias_to_add(bias, torch.float16), bias.half())
    assert bias_to_add(bias, torch.float32).dtype == torch.float32
    assert bias_to_add(None, HALF) is None


def test_a_trained_bias_is_rounded_at_every_call():
    bias = filled(nn.Linear(4, 6)).bias
    assert bias_to_add(bias, HALF) is not bias_to_add(bias, HALF)
    with torch.no_grad():
        bias.add_(1)
    assert torch.equal(bias_to_add(bias, HALF), bias.detach().to(HALF))


def _operations(layer: nn.Module, x: torch.Tensor, passes: int) -> list[str]:
    """Return the operations of the last pass under autocast."""
    for _ in range(passes):
        layer.zero_grad()
        x.grad = None
        with Dispatched() as dispatched:
            with torch.autocast("cpu", HALF):
                y = layer(x)
            torch.autograd.backward(y, torch.ones_like(y))
    dispatched.names.remove("ones_like")
    return dispatched.names


@pytest.mark.parametrize(("rows", "columns"), [(300, 20), (20, 300)])
def test_a_layer_with_copies_dispatches_no_more_than_a_dense_one(rows, columns):
    counts, x = [], inputs(5, columns, dtype=torch.float32).requires_grad_()
    for sampled in (False, True):
        layer = filled(nn.Linear(columns, rows))
        layer.bias.requires_grad_(False)
        if sampled:
            sampled_gradients(layer, SO([layer.weight], density_ratio=0.01), whole=True)
            Arena([layer.weight]).add_half(HALF)
        names = _operations(layer, x, passes=2)
        counts.append(len(names))
    # The CPU rounds both factors of a float32 product, by two operations that a GPU has not.
    names = sorted(names)
    keeps_columns = ["index_select"] if columns > rows else []
    casts = ["_to_copy"] * (2 + 2)  # of the input and its gradient
    assert names == sorted([*casts, "addmm", "mm", "mm", "take", *keeps_columns])
    assert len(names) - 2 < counts[0] == 8
