"""Weights in one arena and padded rows: the results of the plain path, bit for bit."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from so_clip.errors import InputError
from so_clip.optim.arena import Arena
from so_clip.optim.so import SO
from so_clip.optim.state import MAX_PADDED_ENTRIES, rows_that_fit
from tests.helpers.packed_training import Training, assert_same, weights

OPTIONS = (
    {},
    {"order": "update_first"},
    {"bias_correction": "age"},
    {"bias_correction": "age", "order": "update_first", "weight_decay": 0.1},
    {"weight_decay": 0.1, "maximize": True},
    {"T": 0},
    {"bias_correction": "twice", "order": "update_first"},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("static", [False, True], ids=["new_supports", "static"])
def test_packed_steps_equal_separate_ones(options, static):
    plain = Training(packed=False, **options).take(8)
    assert_same(Training(packed=True, static=static, **options).take(8), plain)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_static_steps_equal_plain_ones(options):
    assert_same(
        Training(packed=False, static=True, **options).take(8),
        Training(packed=False, **options).take(8),
    )


@settings(max_examples=15)
@given(
    density_ratio=st.sampled_from([1e-4, 0.01, 0.1, 0.6, 0.95]),
    seed=st.integers(0, 9),
    order=st.sampled_from(["prune_first", "update_first"]),
)
def test_packed_steps_equal_separate_ones_at_all_densities(density_ratio, seed, order):
    options = {"density_ratio": density_ratio, "seed": seed, "order": order, "T": 2}
    assert_same(Training(packed=True, **options).take(5), Training(packed=False, **options).take(5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_packed_weights_of_other_types(dtype):
    assert_same(
        Training(packed=True, dtype=dtype).take(6), Training(packed=False, dtype=dtype).take(6)
    )


def test_the_copy_is_what_a_cast_gives():
    training = Training(packed=True).take(7)
    for param in training.params:
        arena = Arena.of(param)
        assert arena is not None
        assert torch.equal(arena.half_of(param, torch.bfloat16), param.to(torch.bfloat16))
        assert arena.half_of(param, torch.float16) is None


def test_a_write_of_somebody_else_reaches_the_copy():
    training = Training(packed=True).take(2)
    param = training.params[1]
    arena = Arena.of(param)
    assert arena is not None
    with torch.no_grad():
        param.mul_(3)
    assert torch.equal(arena.half_of(param, torch.bfloat16), param.to(torch.bfloat16))
    with torch.no_grad():
        param.mul_(3)
    training.optimizer.make_static()
    training.optimizer.prepare_step()  # a captured step runs no Python that would ask
    offset = Arena.offset(param)
    part = arena.half[offset : offset + param.numel()]
    assert torch.equal(part.view(param.shape), param.to(torch.bfloat16))


def test_addresses_stay_in_static_mode():
    training = Training(packed=True, static=True).take(2)
    supports = [training.optimizer.support(param) for param in training.params]
    values = [*supports, *training.params]
    values += [
        value
        for state in training.optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    before = [value.data_ptr() for value in values]
    versions = [support._version for support in supports]
    layout = training.optimizer.layout_version
    training.take(7)
    assert [value.data_ptr() for value in values] == before
    assert all(new._version > old for new, old in zip(supports, versions, strict=True))
    assert all(
        training.optimizer.support(param) is support
        for param, support in zip(training.params, supports, strict=True)
    )
    assert training.optimizer.layout_version == layout


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "separate"])
def test_a_saved_state_continues_packed_or_not(packed):
    whole = Training(packed=False).take(9)
    first = Training(packed=not packed).take(4)
    saved = copy.deepcopy(first.optimizer.state_dict())
    second = Training(packed=packed, static=packed)
    with torch.no_grad():
        for param, value in zip(second.params, first.params, strict=True):
            param.copy_(value)
    second.optimizer.load_state_dict(saved)
    second.steps = first.steps
    assert_same(second.take(5), whole)


def test_a_forgotten_tensor_starts_again_in_the_same_arena():
    trainings = [Training(packed=packed, T=2).take(4) for packed in (True, False)]
    for training in trainings:
        version = training.optimizer.layout_version
        for param in training.params:
            training.optimizer.forget(param)
        assert training.optimizer.layout_version > version
        training.take(4)
    assert_same(*trainings)


def test_tensors_with_fewer_steps_are_stepped_apart():
    trainings = [Training(packed=packed, T=2).take(4) for packed in (True, False)]
    for training in trainings:
        training.optimizer.forget(training.params[2])
        training.take(4)
    assert_same(*trainings)
    assert "steps" in (trainings[0].optimizer.not_capturable() or "")


def test_a_tensor_that_shares_memory_stays_where_it_is():
    base = torch.randn(6, 50)
    part, whole = nn.Parameter(base[:3]), nn.Parameter(torch.randn(20, 20))
    optimizer = SO([part, whole], density_ratio=0.02)
    address = part.data_ptr()
    optimizer.pack()
    assert part.data_ptr() == address
    assert Arena.of(part) is None
    assert Arena.of(whole) is not None
    for param in (part, whole):
        param.grad = torch.ones_like(param)
    before = base[:3].clone()
    optimizer.step()
    assert (base[:3] != before).sum() == 3


def test_two_parameters_of_one_memory_stay_together():
    first = nn.Parameter(torch.randn(20, 20))
    second = nn.Parameter(first.data)
    SO([first, second], density_ratio=0.02).pack()
    assert first.data_ptr() == second.data_ptr()


def test_tensors_with_far_more_entries_than_the_others_stay_apart():
    sizes = [40, MAX_PADDED_ENTRIES // 100, 20, MAX_PADDED_ENTRIES // 2] + [30] * 97
    params = [torch.empty(size) for size in sizes]
    packed = rows_that_fit(params, sizes)
    assert [len(param) for param in packed] == [size for size in sizes if size != sizes[3]]
    assert rows_that_fit(params[3:4] * 3, sizes[3:4] * 3) == []


def test_a_packed_model_has_the_state_dict_of_before():
    model = nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 30))
    model[1].weight = model[0].weight.__class__(torch.randn(30, 40))
    before = copy.deepcopy(model.state_dict())
    names = {id(param): name for name, param in model.named_parameters()}
    optimizer = SO([model[0].weight, model[1].weight], density_ratio=0.01)
    optimizer.pack(torch.bfloat16)
    assert {id(param): name for name, param in model.named_parameters()} == names
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    copied = copy.deepcopy(model)
    assert Arena.of(copied[0].weight) is None
    assert copied[0].weight.untyped_storage().nbytes() == copied[0].weight.nbytes
    model.load_state_dict({name: value + 1 for name, value in before.items()})
    arena = Arena.of(model[0].weight)
    assert arena is not None
    expected = (before["0.weight"] + 1).to(torch.bfloat16)
    assert torch.equal(arena.half_of(model[0].weight, torch.bfloat16), expected)
    model.to(torch.float64)
    assert Arena.of(model[0].weight) is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"gradient_selection": "importance"}, "optimizer.gradient_selection=importance"),
        ({"moment_selection": "random"}, "optimizer.moment_selection=random"),
        ({"foreach": False}, "optimizer.foreach=False"),
    ],
)
def test_a_step_that_reads_the_host_is_not_captured(options, reason):
    optimizer = SO(weights(), **options)
    assert (optimizer.not_capturable() or "").startswith(reason)


def test_tensors_that_share_memory_with_others_stay_together():
    one = nn.Parameter(torch.randn(20, 20))
    other, viewed = nn.Parameter(one.data), nn.Parameter(torch.randn(20, 20))
    view = viewed.detach()
    SO([one, other, viewed], density_ratio=0.1).pack()
    assert one.data_ptr() == other.data_ptr()
    assert viewed.data_ptr() == view.data_ptr()


def test_copies_follow_the_steps_of_all_optimizers():
    # A replay reads the copies as the preparation has left them.
    mixed = [nn.Parameter(torch.randn(30, 30).to(kind)) for kind in (torch.float, torch.bfloat16)]
    weight = mixed[0]
    first = SO(mixed, lr=0.1, density_ratio=0.1)
    first.pack()
    first.pack(torch.bfloat16)
    second = SO([weight], lr=0.1, density_ratio=0.1, moment_selection="dense")
    arena = Arena.of(weight)
    assert arena is not None
    assert arena.half is not None
    for optimizer in (first, second):
        optimizer.make_static()
        for param in mixed:
            param.grad = torch.ones_like(param)
        optimizer.step()
        optimizer.prepare_step()
        assert torch.equal(arena.half[: weight.numel()].view_as(weight), weight.bfloat16())


def test_a_weight_that_left_its_arena_leaves_the_copies_of_others():
    optimizer = SO(params := [nn.Parameter(torch.randn(9, 9)) for _ in range(2)], density_ratio=0.1)
    optimizer.pack(torch.bfloat16)
    optimizer.make_static()
    arena = Arena.of(params[1])
    assert arena is not None
    params[0].data = torch.ones(10, 10)
    with torch.no_grad():
        params[0].mul_(2)
    arena.refresh()
    assert torch.equal(arena.half_of(params[1], torch.bfloat16), params[1].bfloat16())


def test_options_that_change_after_packing_count_in_the_next_step():
    trainings = [Training(packed=packed, T=2).take(3) for packed in (True, False)]
    for training in trainings:
        for change in ({"gradient_selection": "importance"}, {"gradient_selection": "random"}):
            training.optimizer.param_groups[0].update(change)
            training.take(3)
    assert_same(*trainings)


@pytest.mark.parametrize("half", [torch.int8, torch.float32, "bf16"])
def test_a_copy_has_half_precision(half):
    with pytest.raises(InputError, match=r"half=.*torch\.bfloat16"):
        SO(weights()).pack(half)


@pytest.mark.parametrize("static", [True, False])
def test_a_step_on_the_device_says_that_it_must_be_prepared(static):
    optimizer = SO(params := weights())
    if static:
        optimizer.make_static()
    params[0].grad = torch.ones_like(params[0])
    with pytest.raises(InputError, match="prepare_step"):
        optimizer.step_on_device()
