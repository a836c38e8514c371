"""Checks of runs and of their parts on one device, with captured steps.

On a GPU the steps are CUDA graphs. On the CPU they are emulated, so the same checks run there.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import nn

from so_clip.adaptation import adapting
from so_clip.capture.captured_step import CapturedStep, Recorder
from so_clip.capture.cuda_recorder import CudaRecorder
from so_clip.capture.device_steps import device_steps
from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.config.settings import Settings
from so_clip.data.run_data import gather
from so_clip.optim.arena import Arena
from so_clip.optim.sampled import sampled_gradients
from so_clip.optim.so import SO
from so_clip.run import Result, run
from so_clip.runtime.precision import Precision
from so_clip.train import compute_gradients, train
from tests.helpers.captured_runs import emulated_graphs
from tests.helpers.emulated_graph import EmulatedRecorder

STEADY = ("precision=fp32", "schedule.stop_loss=0")
# Trainings amplify differences of rounding, so late losses are compared loosely.
EARLY = 20


def demo(device: str, results_dir: Path, *overrides: str) -> Settings:
    arguments = ("experiment=demo", f"device={device}", f"results_dir={results_dir}")
    return from_config(compose([*arguments, *overrides]))


def run_on(device: str, results_dir: Path, *overrides: str, steps: int = 6) -> Result:
    """Do a short demo."""
    settings = demo(device, results_dir, *overrides, f"schedule.max_steps={steps}")
    return run(settings, gather(settings.data))


def losses(result: Result) -> list[float]:
    file = result.folder / "history.csv"
    lines = file.read_text().splitlines()[1:] if file.exists() else []
    return [float(line.split(",")[1]) for line in lines]


@contextmanager
def graphs_on(device: str) -> Iterator[None]:
    """Let runs on this device capture their steps: really, or emulated on the CPU."""
    with emulated_graphs() if device == "cpu" else nullcontext():
        yield


def recorder_on(device: str) -> Recorder:
    place = torch.device(device)
    return EmulatedRecorder(place) if device == "cpu" else CudaRecorder(place)


def check_losses(device: str, folder: Path, *overrides: str, steps: int = 60) -> None:
    """Check that captured steps have the losses of eager ones."""
    options = (*STEADY, *overrides)
    with graphs_on(device):
        captured = run_on(device, folder / "captured", *options, "graph=auto", steps=steps)
    eager = run_on(device, folder / "eager", *options, "graph=false", steps=steps)
    assert captured.metrics["graph"] == "captured"
    assert eager.metrics["graph"] == "eager: graph=false"
    ours, theirs = losses(captured), losses(eager)
    assert len(ours) == len(theirs) == steps
    assert ours[:EARLY] == pytest.approx(theirs[:EARLY], rel=1e-3, abs=1e-4)
    assert ours == pytest.approx(theirs, rel=5e-2, abs=1e-2)


@contextmanager
def power_cut_at(step: int) -> Iterator[None]:
    """End the training of the block after a step, as a power cut does: no clean-up of errors."""

    class PowerCut(BaseException):
        pass

    def cut_short(loop, **options):
        def stop(done):
            if done == step:
                raise PowerCut
            return loop.after_step(done)

        return train(replace(loop, after_step=stop), **options)

    with patch.object(adapting, "train", cut_short), pytest.raises(PowerCut):
        yield


def check_resume(device: str, folder: Path, *overrides: str) -> None:
    """Check that a run that is cut short after its capture equals the whole run."""
    options = (*STEADY, *overrides, "checkpoint_seconds=0.001")
    with graphs_on(device):
        whole = losses(run_on(device, folder / "whole", *options, steps=40))
        with power_cut_at(20):
            run_on(device, folder / "cut", *options, steps=40)
        resumed = run_on(device, folder / "cut", *options, steps=40)
    assert resumed.metrics["graph"] == "captured"
    assert losses(resumed)[:EARLY] == pytest.approx(whole[:EARLY], rel=1e-5)
    assert losses(resumed) == pytest.approx(whole, rel=1e-2)


def check_half_copies(device: str, steps: int = 50) -> None:
    """Check that copies in half precision equal casts after captured steps, over draws."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 64), nn.GELU(), nn.Linear(64, 10)).to(device)
    weights = [layer.weight for layer in model if isinstance(layer, nn.Linear)]
    model.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = SO(weights, 1e-2, density_ratio=0.05, T=7)
    optimizer.pack(torch.bfloat16)
    sampled_gradients(model, optimizer, whole=True)
    precision = Precision("bf16", torch.device(device))
    gradients = partial(compute_gradients, model, precision=precision, caches_casts=False)
    steps_of_so = device_steps(optimizer)
    step = CapturedStep(
        gradients, model, optimizer, steps_of_so, recorder_on(device), warm_up_steps=3
    )
    draw = torch.Generator().manual_seed(0)
    begin = [weight.detach().clone() for weight in weights]
    with step.training():
        for _ in range(steps):
            x_BD = torch.randn(16, 48, generator=draw).to(device)
            step(x_BD, torch.randint(10, (16,), generator=draw).to(device))
        assert step.outcome == "captured"
        for weight, old in zip(weights, begin, strict=True):
            arena = Arena.of(weight)
            assert arena is not None
            assert arena.half is not None
            start = Arena.offset(weight)
            half = arena.half[start : start + weight.numel()].view(weight.shape)
            assert torch.equal(half, weight.detach().bfloat16())
            assert not torch.equal(half, old.bfloat16())
