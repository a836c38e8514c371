"""Sampled convolutions have the gradients of dense convolutions, at the support alone."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from so_clip import SO
from so_clip.optim.sampled import SampledConv2d, SampledGradient, sampled_gradients
from so_clip.optim.sampled_convolution import entries_of_convolution
from tests.helpers.other_trainers import assert_small_support
from tests.helpers.sampled_pairs import assert_equal, filled, inputs
from tests.helpers.storages import Storages

DENSITY = 1 / 200


def layers(make) -> tuple[nn.Module, nn.Module, SO]:
    """Return a dense module, and an equal one with sampled convolutions and its optimizer."""
    dense = filled(make()).double()
    sampled = copy.deepcopy(dense)
    optimizer = SO(sampled.parameters(), 1e-2, density_ratio=DENSITY, T=3)
    assert sampled_gradients(sampled, optimizer).methods
    return dense, sampled, optimizer


@pytest.mark.filterwarnings("ignore:Using padding")
@settings(max_examples=25)
@given(
    images=st.integers(0, 3),
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.sampled_from([(1, 1), (3, 3), (2, 5), (4, 1)]),
    stride=st.sampled_from([1, 2, (3, 1)]),
    padding=st.sampled_from([0, 2, (1, 0), "same"]),
    mode=st.sampled_from(["zeros", "reflect", "circular"]),
    dilation=st.sampled_from([1, (2, 1)]),
    bias=st.booleans(),
    channels_last=st.booleans(),
)
def test_gradients_are_the_dense_ones_at_the_support(
    images, groups, kernel, stride, padding, mode, dilation, bias, channels_last
):
    if padding == "same":
        stride = 1  # torch requires it
    dense, sampled, optimizer = layers(
        lambda: nn.Conv2d(32, 48, kernel, stride, padding, dilation, groups, bias, mode)
    )
    kind = torch.channels_last if channels_last else torch.contiguous_format
    dense.to(memory_format=kind)
    sampled.to(memory_format=kind)
    xs = [inputs(images, 32, 9, 8).to(memory_format=kind).requires_grad_() for _ in range(2)]
    outputs = [module(x) for module, x in zip((dense, sampled), xs, strict=True)]
    assert torch.equal(*outputs)
    for y in outputs:
        y.backward(inputs(*y.shape, seed=2))
    assert torch.equal(xs[0].grad, xs[1].grad)
    if bias:
        torch.testing.assert_close(dense.bias.grad, sampled.bias.grad)
    support_M = optimizer.support(sampled.weight)
    assert sampled.weight.grad.support_M is support_M
    expected = dense.weight.grad.take(support_M)
    torch.testing.assert_close(sampled.weight.grad.values_M, expected, rtol=1e-11, atol=1e-11)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(inplace=True),
        nn.Conv2d(24, 24, 3, 2, 1, groups=2, bias=False),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 5),
    )


def loss_of(module: nn.Module, seed: int) -> Tensor:
    return module(inputs(4, 3, 10, 10, seed=seed)).square().mean()


def test_seven_steps_have_the_weights_of_dense_gradients():
    dense, sampled, optimizer = layers(network)
    by_dense = SO(dense.parameters(), 1e-2, density_ratio=DENSITY, T=3)
    assert type(sampled[0]) is type(sampled[3]) is SampledConv2d
    for seed in range(7):
        for module, by in ((dense, by_dense), (sampled, optimizer)):
            loss_of(module, seed).backward()
            loss_of(module, seed + 100).backward()  # accumulates
            nn.utils.clip_grad_value_(module.parameters(), 1e-2)
            assert isinstance(module[3].weight.grad, SampledGradient) == (by is optimizer)
            by.step()
            by.zero_grad()
    assert_equal(sampled, dense)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_sums_are_in_float32(dtype):
    layer = filled(nn.Conv2d(16, 24, 3))
    optimizer = SO(layer.parameters(), density_ratio=DENSITY)
    dense = copy.deepcopy(layer)
    sampled_gradients(layer, optimizer)
    x, grad = inputs(5, 16, 9, 9, dtype=torch.float32), inputs(5, 24, 7, 7, dtype=dtype)
    outputs = []
    for module in (layer, dense):
        with torch.autocast("cpu", dtype=dtype):
            outputs.append(module(x))
        outputs[-1].backward(grad)
    assert torch.equal(*outputs)
    assert layer.weight.grad.values_M.dtype == torch.float32
    half = filled(nn.Conv2d(16, 24, 3)).double()
    half(x.to(dtype).double()).backward(grad.double())
    expected = half.weight.grad.take(optimizer.support(layer.weight)).float()
    torch.testing.assert_close(layer.weight.grad.values_M, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.bias.grad, half.bias.grad.float(), rtol=1e-2, atol=0.1)


def test_a_convolution_is_sampled_only_where_that_is_faster():
    def methods(density: float, always: bool) -> dict[str, str]:
        module = network()
        optimizer = SO(module.parameters(), density_ratio=density)
        return sampled_gradients(module, optimizer, always=always).methods

    assert methods(1 / 200, always=False)["3.weight"] == "gather"
    assert set(methods(1 / 150, always=True)) == {"7.weight"}


def test_one_image_without_a_batch_has_a_dense_gradient():
    dense, sampled, _ = layers(lambda: nn.Conv2d(16, 24, 3))
    for module in (dense, sampled):
        module(inputs(16, 9, 9)).sum().backward()
    assert torch.equal(sampled.weight.grad, dense.weight.grad)


@pytest.mark.parametrize("make", [lambda: nn.Conv2d(16, 24, 3), lambda: nn.Linear(16, 24)])
def test_a_replica_of_data_parallel_has_a_dense_gradient(make):
    """On several GPUs, nn.DataParallel gives each replica a weight that autograd copied."""
    dense, sampled, optimizer = layers(make)
    replica = sampled._replicate_for_data_parallel()
    replica.weight, replica.bias = sampled.weight.clone(), sampled.bias.clone()
    x = inputs(3, 16, 16, 16)
    dense(x).square().sum().backward()
    replica(x).square().sum().backward()
    assert torch.equal(sampled.weight.grad, dense.weight.grad)
    optimizer.step()
    assert_small_support([*dense.parameters()], optimizer, steps=1)


def test_remove_restores_the_convolution():
    _, sampled, _ = layers(network)
    names = [repr(layer) for layer in network()]
    other = copy.deepcopy(sampled)
    handle = sampled_gradients(other, SO(other.parameters(), density_ratio=DENSITY))
    handle.remove()
    assert [repr(layer) for layer in other] == names


def test_the_dense_gradient_is_never_allocated():
    layer = filled(nn.Conv2d(128, 128, 3, bias=False))
    optimizer = SO(layer.parameters(), density_ratio=5e-4)
    sampled_gradients(layer, optimizer)
    with Storages(layer.weight) as storages, FlopCounterMode(display=False) as flops:
        layer(inputs(2, 128, 6, 6, dtype=torch.float32)).square().mean().backward()
    assert max(storages.sizes) < layer.weight.numel() * 4 / 4
    forward = 2 * 2 * 16 * layer.weight.numel()
    assert flops.get_total_flops() == forward + 2 * 2 * 16 * 73


def test_many_images_and_entries_are_taken_in_parts():
    x, grad = inputs(3, 2, 400, 300), inputs(3, 4, 398, 298)
    weight = torch.zeros(4, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    nn.functional.conv2d(x, weight).backward(grad)
    found = entries_of_convolution(
        grad, x, torch.arange(72), [4, 2, 3, 3], [1, 1], [0, 0], [1, 1], groups=1
    )
    torch.testing.assert_close(found.view(4, 2, 3, 3), weight.grad)


@pytest.mark.slow
def test_one_compiled_graph_serves_all_supports():
    torch._dynamo.reset()
    dense, sampled, optimizer = layers(network)
    by_dense = SO(dense.parameters(), 1e-2, density_ratio=DENSITY, T=3)
    compiled = torch.compile(sampled, backend="aot_eager", fullgraph=True)
    for seed in range(5):
        for module, by in ((dense, by_dense), (compiled, optimizer)):
            loss_of(module, seed).backward()
            by.step()
            by.zero_grad()
    assert_equal(sampled, dense)
