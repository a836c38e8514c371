"""Layers that make the whole product for a moment: the gradients, copies and operations."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from so_clip import SO
from so_clip.optim.sampled import sampled_gradients
from so_clip.optim.sampling import methods_of
from tests.helpers.dispatched import Dispatched
from tests.helpers.sampled_pairs import (
    assert_equal,
    assert_equal_trainings,
    assert_sampled,
    filled,
    inputs,
    twins,
)


@settings(max_examples=40)
@given(
    shape=st.sampled_from([(), (6,), (0,), (2, 5), (3, 0), (2, 3, 4)]),
    columns=st.integers(1, 60),
    rows=st.integers(1, 40),
    bias=st.booleans(),
    density=st.floats(1e-6, 0.999),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 9),
)
def test_gradients_are_the_dense_ones_at_the_support(
    shape, columns, rows, bias, density, dtype, seed
):
    layer = filled(nn.Linear(columns, rows, bias=bias), seed).to(dtype)
    dense = copy.deepcopy(layer)
    optimizer = SO(layer.parameters(), density_ratio=density, seed=seed)
    sampled_gradients(layer, optimizer, whole=True)
    x, x_dense = (inputs(*shape, columns, dtype=dtype).requires_grad_() for _ in range(2))
    y, y_dense = layer(x), dense(x_dense)
    grad = inputs(*y.shape, seed=seed, dtype=dtype)
    y.backward(grad)
    y_dense.backward(grad)
    torch.testing.assert_close(y, y_dense)
    torch.testing.assert_close(x.grad, x_dense.grad)
    if bias:
        assert layer.bias.grad.dtype == dtype
        torch.testing.assert_close(layer.bias.grad, dense.bias.grad)
    support_M = optimizer.support(layer.weight)
    if support_M is None:  # a single weight is dense at any density
        return
    g_NO, x_NI = grad.reshape(-1, rows).double(), x.detach().reshape(-1, columns).double()
    exact_M, terms_M = (item.take(support_M) for item in (g_NO.T @ x_NI, g_NO.abs().T @ x_NI.abs()))
    values_M = layer.weight.grad.values_M
    assert values_M.dtype == torch.promote_types(dtype, torch.float32)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    assert ((values_M - exact_M).abs() <= tolerance * terms_M).all()


def _whole_twins(**options):
    (dense, by_dense), (sampled, optimizer) = twins(**options)
    methods = sampled_gradients(sampled, optimizer, whole=True).methods
    assert {*methods.values()} <= {"whole", "whole_columns"}
    return dense, by_dense, sampled, optimizer


def test_fifty_steps_have_the_losses_of_dense_gradients():
    dense, by_dense, sampled, optimizer = _whole_twins()
    assert_equal_trainings((dense, by_dense), (sampled, optimizer))


def test_uses_of_a_weight_and_backward_passes_add_up_also_in_checkpoints():
    dense, _, sampled, optimizer = _whole_twins(density_ratio=0.02)
    for module in (dense, sampled):
        for seed in range(2):
            x = inputs(3, 4, 20, seed=seed).requires_grad_()
            hidden = module[:3](x) + module[:3](2 * x)
            checkpoint(module[3:], hidden, use_reentrant=False).square().mean().backward()
    assert_sampled(sampled, optimizer, dense)
    with torch.no_grad():
        assert torch.equal(sampled.eval()(x), dense(x))


@pytest.mark.slow
def test_a_compiled_model_has_one_graph_for_all_supports():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    dense, by_dense, sampled, optimizer = _whole_twins()
    compiled = torch.compile(sampled, backend="aot_eager", fullgraph=True)
    for seed in range(7):
        for module in (dense, compiled):
            module(inputs(4, 20, seed=seed)).square().mean().backward()
        assert_sampled(sampled, optimizer, dense)
        for by in (by_dense, optimizer):
            by.step()
            by.zero_grad()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert_equal(sampled, dense)


def test_an_input_is_kept_where_it_is_saved_anyway_or_its_columns_are_no_fewer():
    layer = filled(nn.Linear(64, 64, bias=False))
    sampled_gradients(layer, SO(layer.parameters(), density_ratio=0.01), whole=True)
    x = inputs(50, 64, dtype=torch.float32)

    def kept() -> torch.Size:
        return layer(x).grad_fn.next_functions[0][0].saved_tensors[0].shape

    assert kept() == (50, 40)
    x.saved_anyway = True
    assert kept() == (50, 64)


def test_only_half_precision_on_a_gpu_has_whole_products_by_itself():
    with FakeTensorMode():
        on_cpu, on_gpu = (torch.empty(768, 3072, device=device) for device in ("cpu", "cuda"))
    assert methods_of(on_cpu, 5000, None) == ("csr", "csr")
    assert methods_of(on_cpu, 5000, True) == ("whole", "whole")
    assert methods_of(on_gpu, 1179, None) == ("columns", "whole_columns")
    assert methods_of(on_gpu, 5000, None) == ("rows", "whole")
    assert methods_of(on_gpu, 5000, False) == ("rows", "rows")


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolutions_take_their_entries_from_torchs_own_gradient(groups, dtype):
    layer = filled(nn.Conv2d(8, 6, 3, stride=2, padding=1, groups=groups))
    dense = copy.deepcopy(layer)
    optimizer = SO(layer.parameters(), density_ratio=0.004)
    sampled_gradients(layer, optimizer, whole=True)
    xs = [inputs(4, 8, 9, 9, dtype=torch.float32).requires_grad_() for _ in range(2)]
    with Dispatched() as dispatched:
        for module, x in zip((layer, dense), xs, strict=True):
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                y = module(x)
            y.float().square().sum().backward()
    assert "so_clip::sampled_convolution" not in dispatched.names
    grad = layer.weight.grad
    assert grad.values_M.dtype == torch.float32
    assert torch.equal(grad.values_M, dense.weight.grad.take(grad.support_M))
    assert torch.equal(xs[0].grad, xs[1].grad)
    torch.testing.assert_close(layer.bias.grad, dense.bias.grad)
