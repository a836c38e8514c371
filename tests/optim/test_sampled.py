"""Sampled layers have the gradients of dense layers and never allocate a whole gradient."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

from so_clip import SO
from so_clip.optim.sampled import sampled_gradients
from so_clip.runtime.peak_memory import PeakMemory
from tests.helpers.sampled_pairs import (
    assert_equal,
    assert_equal_trainings,
    assert_sampled,
    filled,
    generator,
    inputs,
    mlp,
    twins,
)
from tests.helpers.storages import Storages

CPU = torch.device("cpu")


@settings(max_examples=60)
@given(
    shape=st.sampled_from([(), (1,), (6,), (0,), (2, 5), (3, 0), (2, 3, 4)]),
    columns=st.integers(1, 40),
    rows=st.integers(1, 40),
    bias=st.booleans(),
    density=st.floats(1e-6, 0.999),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    seed=st.integers(0, 9),
)
def test_gradients_are_the_dense_ones_at_the_support(
    shape, columns, rows, bias, density, dtype, seed
):
    layer = filled(nn.Linear(columns, rows, bias=bias), seed).to(dtype)
    dense = copy.deepcopy(layer)
    optimizer = SO(layer.parameters(), density_ratio=density, seed=seed)
    sampled_gradients(layer, optimizer)
    x, x_dense = (inputs(*shape, columns, dtype=dtype).requires_grad_() for _ in range(2))
    y, y_dense = layer(x), dense(x_dense)
    grad = inputs(*y.shape, seed=seed, dtype=dtype)
    y.backward(grad)
    y_dense.backward(grad)
    # torch computes all but the weight's gradient; its kernels depend on shape and strides.
    torch.testing.assert_close(y, y_dense)
    torch.testing.assert_close(x.grad, x_dense.grad)
    if bias:
        torch.testing.assert_close(layer.bias.grad, dense.bias.grad)
    support_M = optimizer.support(layer.weight)
    if support_M is None:  # a single weight is dense at any density
        assert torch.equal(layer.weight.grad, dense.weight.grad)
        return
    g_NO, x_NI = grad.reshape(-1, rows).double(), x.detach().reshape(-1, columns).double()
    exact_M, terms_M = (item.take(support_M) for item in (g_NO.T @ x_NI, g_NO.abs().T @ x_NI.abs()))
    # Sums over bfloat16 are in float32, hence closer than the dense gradient is.
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    values_M = layer.weight.grad.values_M
    assert values_M.dtype == torch.promote_types(dtype, torch.float32)
    assert ((values_M - exact_M).abs() <= tolerance * terms_M).all()


def test_a_network_whose_input_needs_no_gradient():
    (dense, _), (sampled, optimizer) = twins()
    for module in (dense, sampled):
        module(inputs(4, 7, 20)).square().mean().backward()
    assert_sampled(sampled, optimizer, dense)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_sums_are_in_float32(dtype):
    layer = filled(nn.Linear(64, 48))
    optimizer = SO(layer.parameters(), density_ratio=0.1)
    sampled_gradients(layer, optimizer)
    x_NI, grad_NO = inputs(200, 64, dtype=torch.float32), inputs(200, 48, dtype=dtype)
    dense = copy.deepcopy(layer)
    for module in (layer, dense):
        with torch.autocast("cpu", dtype=dtype):
            y_NO = module(x_NI)
        assert y_NO.dtype == dtype
        y_NO.backward(grad_NO)
    support_M = optimizer.support(layer.weight)
    values_M = layer.weight.grad.values_M
    assert values_M.dtype == torch.float32
    # Layers read x and the gradient in half precision; their sums are in float32.
    g_NO, x_NI = grad_NO.double(), x_NI.to(dtype).double()
    terms_M = (g_NO.abs().T @ x_NI.abs()).take(support_M)
    assert ((values_M - (g_NO.T @ x_NI).take(support_M)).abs() <= 1e-6 * terms_M).all()
    # The dense gradient is rounded to half precision once more, after the sum.
    error_M = (dense.weight.grad.take(support_M) - values_M).abs()
    assert (error_M <= torch.finfo(dtype).eps * values_M.abs() + 1e-6 * terms_M).all()
    assert layer.bias.grad.dtype == torch.float32
    assert torch.equal(layer.bias.grad, dense.bias.grad)


def test_no_half_precision_copy_of_a_weight_is_kept():
    layer = filled(nn.Linear(64, 64, bias=False))
    sampled_gradients(layer, SO(layer.parameters(), density_ratio=0.02))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(inputs(2, 64, dtype=torch.float32))
        saved = y.grad_fn.next_functions[0][0].saved_tensors
    assert {tensor.data_ptr() for tensor in saved} >= {layer.weight.data_ptr()}
    assert sum(tensor.dtype == torch.bfloat16 for tensor in saved) == 1  # the input


@pytest.mark.parametrize(("density", "kept"), [(0.01, (50, 40)), (0.1, (50, 64)), (0.9, (50, 64))])
def test_only_the_needed_columns_of_the_input_are_kept(density, kept):
    layer = filled(nn.Linear(64, 64, bias=False))
    sampled_gradients(layer, SO(layer.parameters(), density_ratio=density))
    y = layer(inputs(50, 64, dtype=torch.float32))
    assert y.grad_fn.next_functions[0][0].saved_tensors[0].shape == kept


def test_gradients_accumulate_until_zero_grad():
    (dense, by_dense), (sampled, optimizer) = twins()
    for set_to_none, step in itertools.product((True, False), range(2)):
        for seed in range(3):
            for module in (dense, sampled):
                module(inputs(4, 20, seed=seed)).square().mean().backward()
        assert_sampled(sampled, optimizer, dense)
        if step:
            by_dense.step()
            optimizer.step()
        by_dense.zero_grad()
        optimizer.zero_grad(set_to_none)
        gradient = sampled[0].weight.grad
        assert gradient is None or (not set_to_none and not step and not gradient.values_M.any())


class Tied(nn.Module):
    """One weight in two layers, an embedding and a product; one layer twice; one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 16)
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16, bias=False)
        self.frozen = nn.Linear(16, 16).requires_grad_(False)
        self.unused = nn.Linear(16, 16)
        self.embed.weight = self.second.weight = self.first.weight
        filled(self.double())

    def forward(self, tokens_BL: Tensor) -> Tensor:
        x = self.first(self.embed(tokens_BL))
        x = self.frozen(self.second(self.first(x).tanh()).tanh())
        return nn.functional.linear(x, self.first.weight)


def test_uses_of_shared_weights_add_up_and_frozen_weights_have_no_gradient():
    modules = [Tied(), Tied()]
    optimizers = [SO([p for p in m.parameters() if p.requires_grad], 1e-2) for m in modules]
    (dense, sampled), (by_dense, optimizer) = modules, optimizers
    methods = sampled_gradients(sampled, optimizer).methods
    assert set(methods) == {"embed.weight", "first.weight", "second.weight", "unused.weight"}
    assert type(sampled.frozen) is nn.Linear
    tokens_BL = torch.randint(16, (3, 5), generator=generator())
    for _ in range(12):
        for module, by in zip(modules, optimizers, strict=True):
            by.zero_grad()
            module(tokens_BL).square().mean().backward()
        # The product has a dense gradient; its entries on the support count.
        support_M, tied = optimizer.support(sampled.first.weight), sampled.first.weight
        torch.testing.assert_close(tied.grad.values_M, dense.first.weight.grad.take(support_M))
        assert sampled.unused.weight.grad is None
        assert sampled.frozen.weight.grad is None
        by_dense.step()
        optimizer.step()
        assert_equal(sampled, dense)


def test_ddp_ignores_a_shared_weight_by_its_registered_name():
    module = Tied()
    module._ddp_params_and_buffers_to_ignore = ["frozen.bias"]
    optimizer = SO([p for p in module.parameters() if p.requires_grad])
    sampled_gradients(module, optimizer).exclude_from_ddp()
    ignored = {"frozen.bias", "embed.weight", "unused.weight"}
    assert set(module._ddp_params_and_buffers_to_ignore) == ignored


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_keeps_the_gradients(use_reentrant):
    (dense, by_dense), (sampled, optimizer) = twins()
    for seed in range(5):
        x = inputs(4, 20, seed=seed).requires_grad_()
        dense(x).square().mean().backward()
        middle = checkpoint(sampled[:3], x, use_reentrant=use_reentrant)
        checkpoint(sampled[3:], middle, use_reentrant=use_reentrant).square().mean().backward()
        assert_sampled(sampled, optimizer, dense)
        for by in (by_dense, optimizer):
            by.step()
            by.zero_grad()


@pytest.mark.slow
def test_one_compiled_graph_serves_all_supports():
    torch._dynamo.reset()
    counters.clear()
    (dense, by_dense), (sampled, optimizer) = twins()
    compiled = torch.compile(sampled, backend="aot_eager", fullgraph=True)
    for seed in range(7):  # a new support every 3 steps
        for module in (dense, compiled):
            module(inputs(4, 20, seed=seed)).square().mean().backward()
        assert_sampled(sampled, optimizer, dense)
        for by in (by_dense, optimizer):
            by.step()
            by.zero_grad()
    assert counters["stats"]["unique_graphs"] == 1
    assert_equal(sampled, dense)


@pytest.mark.slow
def test_compiled_under_autocast():
    torch._dynamo.reset()
    layers = [filled(nn.Linear(64, 48)) for _ in range(2)]
    for layer in layers:
        sampled_gradients(layer, SO(layer.parameters(), density_ratio=0.1))
    plain, other = layers
    for item in (plain, torch.compile(other, backend="aot_eager", fullgraph=True)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            item(inputs(20, 64, dtype=torch.float32)).float().square().mean().backward()
    torch.testing.assert_close(plain.weight.grad.values_M, other.weight.grad.values_M)


@pytest.mark.parametrize("pending", [False, True])
@pytest.mark.parametrize("after", [torch.bfloat16, torch.float64])
def test_gradients_have_the_precision_of_weights_that_were_converted(after, pending):
    module = mlp(torch.float32)
    optimizer = SO(module.parameters(), 1e-2, density_ratio=0.05, T=3)
    sampled_gradients(module, optimizer)
    for step in range(3):
        if step == 1:
            module.to(after)  # with a gradient that is still to be used, or without one
        if step != 1 or not pending:
            optimizer.zero_grad()
            dtype = module[0].weight.dtype
            module(inputs(4, 20, dtype=dtype)).square().sum().backward()
            values_dtype = torch.promote_types(dtype, torch.float32)
            assert module[0].weight.grad.values_M.dtype == values_dtype
        if step or not pending:
            optimizer.step()
            assert module[0].weight.dtype == (after if step else torch.float32)
            assert module[0].weight.isfinite().all()
    assert optimizer.state[module[0].weight]["step"] == (2 if pending else 3)


@pytest.mark.parametrize("order", ["prune_first", "update_first"])
def test_fifty_steps_have_the_losses_of_dense_gradients(order):
    assert_equal_trainings(*twins(order=order))


def test_the_dense_gradient_is_never_allocated():
    peaks, sizes = [], []
    for sampled in (False, True):
        layer = filled(nn.Linear(500, 700, bias=False))
        optimizer = SO(layer.parameters(), density_ratio=5e-4, T=2)
        if sampled:
            sampled_gradients(layer, optimizer)
        peak = PeakMemory(layer, optimizer, CPU)
        with peak, Storages(layer.weight) as storages:
            for _ in range(4):
                layer(inputs(9, 500, dtype=torch.float32)).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        peaks.append(peak.result())
        sizes.append(storages.sizes)
    dense_bytes = 500 * 700 * 4
    assert dense_bytes in sizes[0]
    assert max(sizes[1]) < dense_bytes / 10
    off, on = peaks
    assert off["gradients_mib"] == pytest.approx(dense_bytes / 2**20)
    assert on["gradients_mib"] <= 175 * 4 / 2**20
    assert on["peak_memory_mib"] < off["peak_memory_mib"] - 0.9 * dense_bytes / 2**20


def test_sampled_gradients_count_as_gradients():
    layer = nn.Linear(100, 100, bias=False)
    optimizer = SO(layer.parameters(), density_ratio=0.1)
    sampled_gradients(layer, optimizer)
    peak = PeakMemory(layer, optimizer, CPU)
    with peak:
        layer(torch.ones(1, 100)).sum().backward()
        optimizer.step()  # the peak is here
    assert peak.result()["gradients_mib"] == 1000 * 4 / 2**20


def test_a_layer_needs_no_memory_beyond_the_optimizers_state():
    layer = nn.Linear(64, 64)
    optimizer = SO(layer.parameters(), density_ratio=0.05)
    sampled_gradients(layer, optimizer)
    assert layer.sampling.support_M is optimizer.support(layer.weight)
    assert layer.sampling.leaf_M.untyped_storage().nbytes() == 4


def test_on_cuda_the_host_never_waits():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and this machine has none")
    module = mlp(torch.float32).cuda()
    optimizer = SO(module.parameters(), density_ratio=0.05, T=2)
    sampled_gradients(module, optimizer)
    x = inputs(4, 20, dtype=torch.float32).cuda()
    for step in range(6):
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            module(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        finally:
            torch.cuda.set_sync_debug_mode("default")
