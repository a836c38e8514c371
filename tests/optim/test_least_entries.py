"""Tensors too small for one entry at the density: SO trains them, or does not change them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from so_clip import SO
from so_clip.errors import InputError
from so_clip.optim.gradients import clip_grad_norm_
from so_clip.optim.sampled import SampledGradient, sampled_gradients
from tests.helpers.so_steps import gradients

RATIO = 0.05  # no entry of 12, one of 20, five of 100
SIZES = [12, 100, 20]
SELECTIONS = [
    {},
    {"order": "update_first"},
    {"foreach": False},
    {"gradient_selection": "importance"},
    {"gradient_selection": "dense"},
    {"moment_selection": "none"},
    {"moment_selection": "random"},
    {"gradient_selection": "dense", "moment_selection": "dense"},
]


def _weights() -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(n, generator=draw)) for n in SIZES]


def _trained(options: dict[str, Any], *, packed: bool = False) -> tuple[list[Tensor], SO]:
    params = _weights()
    optimizer = SO(params, 0.1, density_ratio=RATIO, weight_decay=0.1, T=2, **options)
    if packed:
        optimizer.pack()
        optimizer.make_static()
    for grads in gradients(params, 5):
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizer.step()
    return [param.detach() for param in params], optimizer


@pytest.mark.parametrize("options", SELECTIONS, ids=str)
def test_without_a_least_count_the_smallest_tensor_never_moves(options: dict[str, Any]) -> None:
    before = _weights()
    after, optimizer = _trained({"least_entries": 0, **options})
    moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert moved == [False, True, True]
    (smallest, *_) = optimizer.param_groups[0]["params"]
    assert optimizer.state[smallest]["step"] == 0
    assert optimizer.support(smallest).tolist() == []


@pytest.mark.parametrize("options", SELECTIONS, ids=str)
def test_with_a_least_count_of_1_every_tensor_moves(options: dict[str, Any]) -> None:
    before = _weights()
    for a, b in zip(before, _trained(options)[0], strict=True):
        assert not torch.equal(a, b)


def test_packed_and_static_steps_leave_the_smallest_tensor_too() -> None:
    for order in ("prune_first", "update_first"):
        options = {"least_entries": 0, "order": order}
        for a, b in zip(_trained(options)[0], _trained(options, packed=True)[0], strict=True):
            assert torch.equal(a, b)


def test_a_least_count_can_be_higher_than_1() -> None:
    params = _weights()
    optimizer = SO(params, density_ratio=RATIO, least_entries=15)
    supports = [optimizer.support(param) for param in params]
    assert supports[0] is None  # all of its 12 entries
    assert [len(support) for support in supports[1:]] == [15, 15]


@pytest.mark.parametrize("whole", [None, True])
def test_a_layer_without_entries_computes_none(whole: bool | None) -> None:
    layers = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 40))
    before = layers[0].weight.detach().clone()
    weights = [layer.weight for layer in layers]
    optimizer = SO(weights, 0.1, density_ratio=RATIO, least_entries=0)
    with sampled_gradients(layers, optimizer, whole=whole):
        layers(torch.ones(2, 4)).square().sum().backward()
        grad = layers[0].weight.grad
        assert isinstance(grad, SampledGradient)
        assert len(grad.values_M) == 0
        assert clip_grad_norm_(optimizer, 1e9, estimate_dense=True) > 0
        optimizer.step()
    assert torch.equal(layers[0].weight, before)
    assert layers[0].weight.grad is None


def test_a_state_is_saved_and_loaded_with_the_smallest_tensor() -> None:
    _, saved = _trained({"least_entries": 0})
    params = _weights()
    loaded = SO(params, density_ratio=RATIO, least_entries=0)
    loaded.load_state_dict(saved.state_dict())
    assert [loaded.state[param]["size"] for param in params] == [0, 5, 1]


def test_a_state_without_entries_does_not_fit_a_tensor_that_must_have_one() -> None:
    _, optimizer = _trained({})
    saved = optimizer.state_dict()
    saved["state"][0] = {"step": 0, "size": 0, "support": torch.empty(0, dtype=torch.int64)}
    with pytest.raises(InputError, match="does not fit tensor 0"):
        optimizer.load_state_dict(saved)


def test_a_state_from_before_the_option_loads_with_a_least_count_of_1() -> None:
    _, optimizer = _trained({})
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        del group["least_entries"]
    other = SO(_weights(), density_ratio=RATIO)
    other.load_state_dict(saved)
    assert other.param_groups[0]["least_entries"] == 1
