"""Scaling, clipping and averaging treat sampled gradients like dense ones."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from so_clip import SO
from so_clip.optim.sampled import SampledGradient, clip_grad_norm_, sampled_gradients

ROOT = Path(__file__).resolve().parents[2]


def twins(density: float = 0.1, lr: float = 1e-2) -> list[tuple[nn.Module, SO]]:
    """Return two equal modules and optimizers; the second samples, with dense biases."""
    pairs = []
    for _ in range(2):
        module = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 4)).double()
        with torch.no_grad():
            for param in module.parameters():
                param.normal_(generator=torch.Generator().manual_seed(param.numel()))
        pairs.append((module, SO(module.parameters(), lr, density_ratio=density, T=3)))
    sampled_gradients(*pairs[1])
    return pairs


def loss(module: nn.Module, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    x_BI = torch.randn(5, 12, generator=draw, dtype=torch.float64)
    return module(x_BI).square().mean()


def assert_equal(pairs: list[tuple[nn.Module, SO]]) -> None:
    (dense, _), (sampled, _) = pairs
    for param, whole in zip(sampled.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(param, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("unscale", [False, True])
def test_steps_with_scaled_gradients(unscale):
    pairs = twins()
    scalers = [torch.amp.GradScaler("cpu", init_scale=2**9) for _ in pairs]
    for seed in range(8):
        for (module, optimizer), scaler in zip(pairs, scalers, strict=True):
            optimizer.zero_grad()
            scaler.scale(loss(module, seed)).backward()
            if unscale:
                scaler.unscale_(optimizer)
                clip_grad_norm_(optimizer, 0.1)
            scaler.step(optimizer)
            scaler.update()
    assert_equal(pairs)
    assert scalers[0].state_dict() == scalers[1].state_dict()


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("unscale", [False, True])
def test_infinite_gradients_skip_the_step_and_lower_the_scale(value, unscale):
    _, (module, optimizer) = twins()
    before = [param.clone() for param in module.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    scaler.scale(loss(module)).backward()
    module[0].weight.grad.values_M[3] = value
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 8
    assert all(map(torch.equal, before, module.parameters()))
    optimizer.zero_grad()
    scaler.scale(loss(module)).backward()
    scaler.step(optimizer)
    assert not any(map(torch.equal, before, module.parameters()))


@pytest.mark.parametrize("max_norm", [1e-3, 1e3])
def test_clipping_uses_the_norm_of_the_entries_that_the_step_reads(max_norm):
    pairs = twins()
    norms = []
    for module, optimizer in pairs:
        loss(module).backward()
        norms.append(clip_grad_norm_(optimizer, max_norm))
    (dense, _), (_, optimizer) = pairs
    (before, _), _ = twins()
    loss(before).backward()
    read = [
        whole.grad.reshape(-1)[optimizer.support(param)]
        for whole, param in zip(before.parameters(), pairs[1][0].parameters(), strict=True)
    ]
    norm = torch.cat(read).norm()
    for found in norms:
        torch.testing.assert_close(found, norm)
    factor = min(1, max_norm / (norm + 1e-6))
    for whole, param in zip(dense.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(whole.grad, param.grad * factor)
    for param, values_M in zip(pairs[1][0].parameters(), read, strict=True):
        if isinstance(param.grad, SampledGradient):
            torch.testing.assert_close(param.grad.values_M, values_M * factor)


def test_clipping_without_supports_equals_torchs():
    layers = [nn.Linear(20, 20), nn.Linear(20, 20)]
    layers[1].load_state_dict(layers[0].state_dict())
    for layer in layers:
        layer(torch.ones(2, 20)).sum().backward()
    norm = clip_grad_norm_(torch.optim.SGD(layers[0].parameters()), 0.5)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(layers[1].parameters(), 0.5))
    torch.testing.assert_close(layers[0].weight.grad, layers[1].weight.grad)
    assert clip_grad_norm_(torch.optim.SGD(nn.Linear(2, 2).parameters()), 0.5) == 0


@pytest.mark.slow
def test_two_processes_stay_bit_identical_and_equal_one_process(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.two_ranks", str(rank), str(tmp_path)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    one, other = tree_leaves(first), tree_leaves(second)
    for leaf, twin in zip(one, other, strict=True):
        assert torch.equal(leaf, twin) if isinstance(leaf, torch.Tensor) else leaf == twin
    for mode in ("plain", "ddp"):
        expected = first[f"{mode}, one process"]["weights"]
        for weight, whole in zip(first[mode]["weights"], expected, strict=True):
            torch.testing.assert_close(weight, whole, rtol=1e-10, atol=1e-12)
