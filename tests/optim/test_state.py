"""Saving, loading and copying SO's state, and its size."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from so_clip import SO
from so_clip.errors import InputError
from so_clip.optim import state as state_module
from so_clip.optim.sampled import sampled_gradients

VARIANTS = [
    {},
    {"order": "update_first", "bias_correction": "age"},
    {"gradient_selection": "importance"},
    {"moment_selection": "random"},
    {"moment_selection": "dense"},
    {"moment_selection": "none"},
    {"gradient_selection": "dense"},
    {"foreach": False},
]


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    """A few tensors of several sizes, two of them alike."""
    linears = [nn.Linear(30, 20), nn.Linear(20, 30), nn.Linear(30, 20)]
    draw = torch.Generator().manual_seed(0)
    net = nn.Sequential(*linears)
    for param in net.parameters():
        nn.init.normal_(param, generator=draw)
    return net.to(dtype)


def optimizer_of(net: nn.Module, **options: Any) -> SO:
    """Weights sampled, biases dense; T = 4."""
    weights = [param for param in net.parameters() if param.ndim == 2]
    biases = [param for param in net.parameters() if param.ndim == 1]
    groups = [{"params": weights}, {"params": biases, "density_ratio": 1}]
    return SO(groups, 0.05, density_ratio=0.05, T=4, seed=3, **options)


def run(net: nn.Module, optimizer: SO, steps: range) -> None:
    """Step by gradients that depend on the step's number alone."""
    for step in steps:
        draw = torch.Generator().manual_seed(step)
        for param in net.parameters():
            param.grad = torch.randn(param.shape, generator=draw).to(param.dtype)
        optimizer.step()


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    assert all(map(torch.equal, one.parameters(), other.parameters()))


def through_a_file(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.fast_cases(16)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("saved_after", [0, 4, 7])
def test_a_saved_state_resumes_bit_for_bit(
    saved_after: int, options: dict[str, Any], dtype: torch.dtype
) -> None:
    through, restarted = model(dtype), model(dtype)
    optimizer = optimizer_of(through, **options)
    run(through, optimizer, range(saved_after))
    weights, state = through_a_file([through.state_dict(), optimizer.state_dict()])
    run(through, optimizer, range(saved_after, 14))

    restarted.load_state_dict(weights)
    resumed = optimizer_of(restarted)
    run(model(dtype), resumed, range(1))
    resumed.load_state_dict(state)
    run(restarted, resumed, range(saved_after, 14))
    assert_equal(through, restarted)
    for one, other in zip(through.parameters(), restarted.parameters(), strict=True):
        assert optimizer.state[one].keys() == resumed.state[other].keys()


def test_a_state_is_loaded_into_an_optimizer_that_has_loaded_one_before() -> None:
    """Accelerate loads a state into every optimizer it prepares, and later that of a checkpoint."""
    net = model()
    optimizer = optimizer_of(net)
    run(net, optimizer, range(3))
    optimizer.load_state_dict(optimizer.state_dict())
    assert "differentiable" in optimizer.defaults  # torch adds it
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    assert optimizer.state[net[0].weight]["step"] == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_state_follows_weights_to_another_device() -> None:
    net = model()
    optimizer = optimizer_of(net)
    sampled_gradients(net, optimizer)
    for device in ("cpu", "cuda", "cpu"):
        net.to(device)
        for _ in range(2):
            optimizer.zero_grad()
            net(torch.ones(2, 30, device=device)).square().mean().backward()
            optimizer.step()
    assert optimizer.state[net[0].weight]["step"] == 6


def test_loading_copies_and_keeps_types() -> None:
    net = model(torch.bfloat16)
    optimizer = optimizer_of(net, bias_correction="age")
    run(net, optimizer, range(3))
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved)
    other = model(torch.bfloat16)
    resumed = optimizer_of(other)
    resumed.load_state_dict(saved)
    types = {
        key: value.dtype
        for key, value in resumed.state[other[0].weight].items()
        if isinstance(value, Tensor)
    }
    assert types == {
        "support": torch.int64,
        "index": torch.int64,
        "place": torch.int64,
        "exp_avg": torch.float32,
        "exp_avg_sq": torch.float32,
        "age": torch.int32,
    }
    run(other, resumed, range(3, 6))
    for key, state in saved["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                assert torch.equal(value, before["state"][key][name])


FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("how", ["load", "to"])
@pytest.mark.parametrize("options", [*VARIANTS[:2], VARIANTS[4], VARIANTS[7]], ids=str)
@pytest.mark.parametrize("after", FLOATS, ids=str)
@pytest.mark.parametrize("before", FLOATS, ids=str)
def test_a_state_serves_weights_of_another_precision(
    before: torch.dtype, after: torch.dtype, options: dict[str, Any], how: str
) -> None:
    net = model(before)
    optimizer = optimizer_of(net, **options)
    run(net, optimizer, range(6))
    state = copy.deepcopy(optimizer.state_dict()["state"])
    other, resumed = net, optimizer
    if how == "load":
        other = model(after)
        resumed = optimizer_of(other, **options)
        resumed.load_state_dict(optimizer.state_dict())
        assert {moments_of(resumed, param).dtype for param in other.parameters()} == {
            torch.promote_types(after, torch.float32)
        }
    other.to(after)
    run(other, resumed, range(6, 7))
    for i, param in enumerate(other.parameters()):
        moments = moments_of(resumed, param)
        assert moments.dtype == torch.promote_types(after, torch.float32)
        assert moments.isfinite().all()
        assert param.isfinite().all()
        assert resumed.state[param]["step"] == 7
        if i == 1:  # a dense bias, number 3 in the groups: its moments continue from the old ones
            grad = param.grad.to(moments.dtype)
            expected = state[3]["exp_avg"].to(moments.dtype) * 0.9 + grad * (1 - 0.9)
            torch.testing.assert_close(moments, expected)
    run(other, resumed, range(7, 12))


def moments_of(optimizer: SO, param: Tensor) -> Tensor:
    moments: Tensor = optimizer.state[param]["exp_avg"]
    return moments


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("steps", [0, 6])
def test_copies_go_their_own_ways(steps: int, clone: Any) -> None:
    net = model()
    optimizer = optimizer_of(net)
    run(net, optimizer, range(steps))
    net_copy, optimizer_copy = clone((net, optimizer))
    run(net, optimizer, range(steps, 12))
    run(net_copy, optimizer_copy, range(steps, 12))
    assert_equal(net, net_copy)


def test_hooks_around_loading_see_what_they_should() -> None:
    net = model()
    optimizer = optimizer_of(net)
    run(net, optimizer, range(2))
    saved = optimizer.state_dict()
    seen = []

    def halve_the_rate(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        groups = [{**group, "lr": group["lr"] / 2} for group in state_dict["param_groups"]]
        return {**state_dict, "param_groups": groups}

    other = model()
    resumed = optimizer_of(other)
    resumed.register_load_state_dict_pre_hook(halve_the_rate)
    resumed.register_load_state_dict_post_hook(
        lambda loaded: seen.append(loaded.state[other[0].weight]["index"].dtype)
    )
    resumed.load_state_dict(saved)
    assert resumed.param_groups[0]["lr"] == 0.025
    assert seen == [torch.int64]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("generator"), "SO did not save it"),
        (lambda state: state["param_groups"].pop(), "different number of parameter groups"),
    ],
    ids=["no generator", "a group less"],
)
def test_a_state_that_does_not_fit(change: Any, message: str) -> None:
    optimizer = optimizer_of(model())
    state = optimizer.state_dict()
    change(state)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)


def _of_another_shape(state: dict[str, Any]) -> None:
    state["state"][0]["index"] = state["state"][0]["index"][:-1]


def _beyond_the_tensor(state: dict[str, Any]) -> None:
    state["state"][0]["index"] = state["state"][0]["index"] + 10**6


def _before_the_tensor(state: dict[str, Any]) -> None:
    state["state"][0]["support"] = state["state"][0]["support"] - 10**6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update(generator=None), "'generator' is damaged"),
        (lambda state: state.update(generator=torch.zeros(3)), "'generator' is damaged"),
        (lambda state: state.pop("state"), "has no 'state'"),
        (lambda state: state["param_groups"][0].pop("T"), "a group without 'T'"),
        (lambda state: state["param_groups"][0].update(density_ratio=7), "density_ratio=7"),
        (lambda state: state["state"].update({0: None}), "does not fit tensor"),
        (lambda state: state["state"][0].update(step="x"), "does not fit tensor"),
        (lambda state: state["state"][0].pop("index"), "does not fit tensor"),
        (lambda state: state["state"][0].pop("exp_avg"), "does not fit tensor"),
        (_of_another_shape, "does not fit tensor"),
        (_beyond_the_tensor, "does not fit tensor"),
        (_before_the_tensor, "does not fit tensor"),
    ],
)
def test_a_damaged_state_is_refused_and_not_loaded(change: Any, message: str) -> None:
    net = model()
    optimizer = optimizer_of(net)
    run(net, optimizer, range(3))
    saved = copy.deepcopy(optimizer.state_dict())
    change(saved)
    before = str(optimizer.state_dict())
    with pytest.raises(InputError, match=message):
        optimizer.load_state_dict(saved)
    assert str(optimizer.state_dict()) == before


@pytest.mark.parametrize(("bias_correction", "most"), [("step", 32), ("age", 36)])
@pytest.mark.parametrize("order", ["prune_first", "update_first"])
def test_bytes_of_state_per_sampled_entry(order: str, bias_correction: str, most: int) -> None:
    param = nn.Parameter(torch.zeros(1000, 100, dtype=torch.bfloat16))
    optimizer = SO([param], density_ratio=0.01, order=order, bias_correction=bias_correction)
    param.grad = torch.ones(1000, 100, dtype=torch.bfloat16)
    optimizer.step()
    tensors = [value for value in optimizer.state[param].values() if isinstance(value, Tensor)]
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors) == most * 1000


def test_a_large_batch_is_stepped_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, in_parts = model(), model()
    run(at_once, optimizer_of(at_once), range(6))
    monkeypatch.setattr(state_module, "MAX_BATCH_ENTRIES", 31)
    run(in_parts, optimizer_of(in_parts), range(6))
    assert_equal(at_once, in_parts)


def test_tensors_stepped_together_share_memory_and_part_without_harm() -> None:
    together, apart = model(), model()
    optimizers = optimizer_of(together), optimizer_of(apart, foreach=False)
    for step in range(10):
        for net, optimizer in zip((together, apart), optimizers, strict=True):
            draw = torch.Generator().manual_seed(step)
            for i, param in enumerate(net.parameters()):
                grad = torch.randn(param.shape, generator=draw)
                param.grad = None if i == 4 and step % 3 == 1 else grad
            optimizer.step()
    assert_equal(together, apart)
    first, last = (optimizers[0].state[layer.weight]["exp_avg"] for layer in together[::2])
    assert first._base is not None
    assert first.untyped_storage().data_ptr() != last.untyped_storage().data_ptr()
