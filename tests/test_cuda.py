"""Runs on a GPU: autocast, gradient scaling, synchronisation and the allocator."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from so_clip.build import build_model, build_optimizer
from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.config.resolve import resolved
from so_clip.config.settings import Settings
from so_clip.data.run_data import gather
from so_clip.optim.sampled_gradient import values_of
from so_clip.results.run_folder import CHECKPOINT_FILE
from so_clip.run import Result, run
from so_clip.runtime.peak_memory import MIB
from so_clip.system.paths import CONF_DIR

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

METHODS = sorted(path.stem for path in (CONF_DIR / "method").glob("*.yaml"))


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


def test_auto_on_a_gpu_is_bf16(tmp_path):
    metrics = run_on("auto", tmp_path).metrics
    assert metrics["precision"] == "bf16"
    assert metrics["device"] == torch.cuda.get_device_name()
    assert "allocator" in metrics["peak_memory_measures"]


def test_fp32_gives_the_values_of_the_cpu():
    draw = torch.Generator().manual_seed(0)
    images_BCHW = torch.randint(256, (8, 3, 32, 32), generator=draw, dtype=torch.uint8)
    labels_B = torch.arange(8)
    seen = {}
    for device in ("cpu", "cuda"):
        settings = demo(
            device, Path("unused"), "precision=fp32", "optimizer.sampled_gradients=true"
        )
        settings = resolved(settings)
        model = build_model(settings, gather(settings.data))
        optimizer = build_optimizer(settings.method.optimizer, model)
        logits_BK = model.classifier(images_BCHW.to(device))
        nn.functional.cross_entropy(logits_BK, labels_B.to(device)).backward()
        gradients = [values_of(value.grad) for value in model.parameters.values()]
        supports = [optimizer.support(value) for value in model.parameters.values()]
        seen[device] = [
            value.detach().cpu().double() for value in (logits_BK, *gradients, *supports)
        ]
    for ours, other in zip(seen["cuda"], seen["cpu"], strict=True):
        assert float((ours - other).norm()) <= 1e-3 * float(other.norm())


def test_a_run_on_the_gpu_has_the_cpus_accuracy(tmp_path):
    on_gpu, on_cpu = (
        run_on(device, tmp_path / device, "precision=fp32", steps=60).metrics
        for device in ("cuda", "cpu")
    )
    # The device scales the crops, and some pixels round differently.
    for key, points in {"zero_shot_accuracy_percent": 0.4, "accuracy_percent": 8}.items():
        assert on_gpu[key] == pytest.approx(on_cpu[key], abs=points)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp16_authors"])
def test_the_loss_falls_in_half_precision(tmp_path, precision):
    seen = losses(run_on("cuda", tmp_path, f"precision={precision}", steps=80))
    assert sum(seen[-10:]) < 0.8 * sum(seen[:10])


@pytest.mark.parametrize("memory", ["fast", "balanced", "small"])
def test_steps_never_wait_for_the_gpu(tmp_path, monkeypatch, memory):
    from so_clip import train

    step = train.train_step
    seen = []

    def watched(*arguments, **options):
        # The first steps create state and compile. Losses are read outside a step.
        seen.append(len(seen) > 3)
        torch.cuda.set_sync_debug_mode("error" if seen[-1] else "default")
        try:
            return step(*arguments, **options)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(train, "train_step", watched)
    run_on("cuda", tmp_path, f"memory={memory}", "schedule.stop_loss=0", steps=24)
    assert sum(seen) == 20


def test_the_peak_comes_from_the_allocator(tmp_path):
    metrics = run_on("cuda", tmp_path).metrics
    parts = ("weights_mib", "gradients_mib", "optimizer_state_mib", "activations_mib")
    assert sum(metrics[part] for part in parts) == pytest.approx(metrics["peak_memory_mib"])
    assert min(metrics[part] for part in parts) > 0
    assert metrics["peak_memory_mib"] <= torch.cuda.get_device_properties(0).total_memory / MIB


def test_a_run_resumes_from_its_checkpoint_on_the_gpu(tmp_path, monkeypatch):
    from so_clip.adaptation import adapting
    from so_clip.train import train

    whole = losses(run_on("cuda", tmp_path / "whole", "precision=fp32", steps=30))

    class PowerCut(BaseException):
        pass

    def cut_short(loop, **options):
        def stop(step):
            if step == 20:
                raise PowerCut
            return loop.after_step(step)

        return train(replace(loop, after_step=stop), **options)

    often = "checkpoint_seconds=0.001"
    with monkeypatch.context() as patch:
        patch.setattr(adapting, "train", cut_short)
        with pytest.raises(PowerCut):
            run_on("cuda", tmp_path / "cut", "precision=fp32", often, steps=30)
    assert [*(tmp_path / "cut").glob(f"*/{CHECKPOINT_FILE}")]
    resumed = losses(run_on("cuda", tmp_path / "cut", "precision=fp32", often, steps=30))
    assert resumed[:15] == pytest.approx(whole[:15], rel=1e-5)
    assert resumed == pytest.approx(whole, rel=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_on_the_gpu(tmp_path, method):
    result = run_on("cuda", tmp_path, f"method={method}")
    assert 5 < result.metrics["accuracy_percent"] <= 100
    assert all(torch.isfinite(torch.tensor(losses(result))))
