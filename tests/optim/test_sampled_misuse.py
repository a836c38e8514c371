"""Sampled gradients in training loops that differ from the example."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from so_clip.errors import InputError
from so_clip.optim.sampled import clip_grad_norm_, sampled_gradients
from so_clip.optim.so import SO


def _model() -> nn.Sequential:
    draw = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 64), nn.GELU(), nn.Linear(64, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) / 6)
    return model


def _optimizer(model: nn.Module) -> SO:
    return SO(model.parameters(), lr=1e-2, density_ratio=0.02, T=10)


def _loss(model: nn.Module, step: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(100 + step)
    return model(torch.randn(8, 40, generator=draw)).square().mean()


def _by_hand(model: nn.Module, optimizer: SO) -> None:
    for parameter in model.parameters():
        parameter.grad = None


@pytest.mark.parametrize(
    "clear", [lambda m, o: o.zero_grad(), lambda m, o: m.zero_grad(), _by_hand]
)
def test_gradients_do_not_accumulate_for_any_way_to_clear_them(clear):
    dense, model = _model(), _model()
    plain, optimizer = _optimizer(dense), _optimizer(model)
    sampled_gradients(model, optimizer, always=True)
    for step in range(12):
        for item, its in ((dense, plain), (model, optimizer)):
            _loss(item, step).backward()
            its.step()
        plain.zero_grad()
        clear(model, optimizer)
    for a, b in zip(dense.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_training_goes_on_after_a_skipped_step():
    model = _model()
    optimizer = _optimizer(model)
    sampled_gradients(model, optimizer, always=True)
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    before = model[0].weight.detach().clone()
    scaler.scale(_loss(model, 0) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(model[0].weight, before)
    model.zero_grad()
    scaler.scale(_loss(model, 1)).backward()
    scaler.step(optimizer)
    assert model[0].weight.isfinite().all()
    assert not torch.equal(model[0].weight, before)


def test_the_last_optimizer_samples_the_layers():
    """A cell of a notebook is run again; Lightning configures optimizers for every fit."""
    model, once = _model(), _model()
    early, late, only = _optimizer(model), _optimizer(model), _optimizer(once)
    handle = sampled_gradients(model, early)
    assert set(sampled_gradients(model, late).methods) == {"0.weight", "2.weight"}
    early.zero_grad()
    sampled_gradients(once, only)
    for step in range(12):
        for item, optimizer in ((model, late), (once, only)):
            _loss(item, step).backward()
            optimizer.step()
    assert torch.equal(model[0].weight, once[0].weight)
    handle.remove()  # now without any layer
    _loss(model, 0).backward()
    with pytest.raises(RuntimeError, match="of another optimizer"):
        early.step()
    late.step()
    twin = copy.deepcopy(model)
    assert sampled_gradients(twin, _optimizer(twin)).methods


def test_optimizers_of_two_parts_of_a_model_sample_their_own_layers():
    model = _model()
    parts = [_optimizer(model[0]), _optimizer(model[2])]
    assert [set(sampled_gradients(model, part).methods) for part in parts] == [
        {"0.weight"},
        {"2.weight"},
    ]
    for step in range(3):
        _loss(model, step).backward()
        assert model[0].weight.grad.support_M is parts[0].support(model[0].weight)
        for part in parts:
            part.step()


@pytest.mark.parametrize("loaded", [False, True])
def test_a_forgotten_tensor_restarts_with_a_new_support(loaded):
    model = _model()
    optimizer = _optimizer(model)
    sampled_gradients(model, optimizer, always=True)
    if loaded:
        optimizer.load_state_dict(optimizer.state_dict())
    _loss(model, 0).backward()
    optimizer.step()
    before = optimizer.support(model[0].weight)
    optimizer.forget(model[0].weight)
    for step in (1, 2):
        _loss(model, step).backward()
        optimizer.step()
    assert optimizer.support(model[0].weight) is not before
    assert optimizer.state[model[0].weight]["step"] == 2
    assert optimizer.state[model[2].weight]["step"] == 3


@pytest.mark.parametrize("shape", [(0,), (80,), (2, 80), ()])
def test_inputs_of_a_wrong_shape_raise_the_error_of_a_linear_layer(shape):
    model = _model()
    x = torch.zeros(shape)
    with pytest.raises((RuntimeError, IndexError)) as plain:
        model(x)
    sampled_gradients(model, _optimizer(model), always=True)
    with pytest.raises(type(plain.value)) as sampled:
        model(x)
    assert str(sampled.value) == str(plain.value)


@pytest.mark.parametrize("max_norm", [0, -1, float("nan")])
def test_a_norm_that_is_not_positive_is_refused(max_norm):
    model = _model()
    optimizer = _optimizer(model)
    _loss(model, 0).backward()
    with pytest.raises(InputError, match="max_norm"):
        clip_grad_norm_(optimizer, max_norm)


@pytest.fixture
def one_process() -> Iterator[None]:
    """A process group of this process alone."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_tensors_that_are_split_over_processes_are_refused():
    from torch.distributed.tensor import DeviceMesh, distribute_module

    model = distribute_module(_model(), DeviceMesh("cpu", [0]))
    with pytest.raises(InputError, match=r"\(64, 40\) is split over processes.*Use Dist"):
        _optimizer(model)


@pytest.mark.usefixtures("one_process")
def test_a_model_in_ddp_is_refused_and_stays_as_it_was():
    model = nn.parallel.DistributedDataParallel(_model())
    with pytest.raises(InputError, match=r"before the model is wrapped.*all_reduce"):
        sampled_gradients(model, _optimizer(model))
    assert type(model.module[0]) is nn.Linear


@pytest.mark.usefixtures("one_process")
def test_ddp_around_sampled_layers_is_refused_unless_it_ignores_them():
    model = _model()
    optimizer = _optimizer(model)
    handle = sampled_gradients(model, optimizer)
    with pytest.raises(InputError, match=r"before the model is wrapped.*all_reduce"):
        _loss(nn.parallel.DistributedDataParallel(model), 0)
    handle.exclude_from_ddp()
    wrapped = nn.parallel.DistributedDataParallel(model)
    for step in range(2):
        optimizer.zero_grad()
        _loss(wrapped, step).backward()
        with pytest.raises(InputError, match=r"of one process.*not all_reduce"):
            optimizer.step()
        handle.all_reduce()
        optimizer.step()
