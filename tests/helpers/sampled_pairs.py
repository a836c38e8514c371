"""Pairs of equal modules: one with dense gradients, one that samples them."""

import pytest
import torch
from torch import Tensor, nn

from so_clip import SO
from so_clip.optim.sampled import (
    SampledEmbedding,
    SampledGradient,
    SampledLinear,
    sampled_gradients,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fill a module's parameters from a seed, by their order."""
    draw = generator(seed)
    with torch.no_grad():
        for param in module.parameters():
            param.normal_(generator=draw).div_(max(1, param.shape[-1]) ** 0.5)
    return module


def mlp(dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return layers that use each of gather, csr and columns at density 0.05."""
    return filled(
        nn.Sequential(
            nn.Linear(20, 30),
            nn.ReLU(inplace=True),  # the output of SampledLinear must allow in-place changes
            nn.Linear(30, 40, bias=False),
            nn.GELU(),
            nn.Linear(40, 5),
        ).to(dtype)
    )


def twins(make=mlp, **options) -> tuple[tuple[nn.Module, SO], tuple[nn.Module, SO]]:
    """Return two equal modules with equal optimizers; the second one samples gradients."""
    pairs = []
    for _ in range(2):
        module = make()
        settings = {"lr": 1e-2, "density_ratio": 0.05, "T": 3, **options}
        pairs.append((module, SO(module.parameters(), **settings)))
    sampled_gradients(*pairs[1])
    return pairs[0], pairs[1]


def assert_sampled(module: nn.Module, optimizer: SO, reference: nn.Module, rtol=1e-12, atol=1e-12):
    """Compare gradients: of sampled layers on the support, of all others whole."""
    kinds = (SampledLinear, SampledEmbedding)
    sampled = {id(m.weight) for m in module.modules() if type(m) in kinds}
    assert sampled
    for param, whole in zip(module.parameters(), reference.parameters(), strict=True):
        if id(param) in sampled:
            assert param.grad.support_M is optimizer.support(param)
            expected = whole.grad.take(param.grad.support_M)
            torch.testing.assert_close(param.grad.values_M, expected, rtol=rtol, atol=atol)
        else:
            assert not isinstance(param.grad, SampledGradient)
            torch.testing.assert_close(param.grad, whole.grad, rtol=rtol, atol=atol)


def assert_equal(module: nn.Module, reference: nn.Module, rtol=1e-9, atol=1e-10) -> None:
    """Compare trained weights. Steps of SO and Adam divide by the gradient's size, which amplifies
    the rounding of sums whose order depends on the machine's load."""
    for param, whole in zip(module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(param, whole, rtol=rtol, atol=atol)


def assert_equal_trainings(*pairs: tuple[nn.Module, SO]) -> None:
    """Train two modules for fifty steps, and compare their losses and weights."""
    x, target = inputs(64, 20), inputs(64, 5, seed=2)
    losses = []
    for _ in range(50):
        for module, optimizer in pairs:
            loss = nn.functional.mse_loss(module(x), target)
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    assert losses[0::2] == pytest.approx(losses[1::2], rel=1e-12)
    assert_equal(pairs[1][0], pairs[0][0], rtol=1e-9, atol=1e-12)


def inputs(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)
