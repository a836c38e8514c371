"""Whole runs on a GPU: what no CPU can show of autocast, scaling, waiting and the allocator."""

from pathlib import Path

import pytest
import torch

from so_clip.config import compose
from so_clip.data.gather import gather
from so_clip.memory import MIB
from so_clip.paths import CONF_DIR
from so_clip.record import CHECKPOINT_FILE
from so_clip.run import Result, run
from so_clip.settings import from_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

METHODS = sorted(path.stem for path in (CONF_DIR / "method").glob("*.yaml"))


def run_on(device: str, results_dir: Path, *overrides: str, steps: int = 6) -> Result:
    """Do a short demo."""
    arguments = ("experiment=demo", f"device={device}", f"results_dir={results_dir}", *overrides)
    settings = from_config(compose([*arguments, f"schedule.max_steps={steps}"]))
    return run(settings, gather(**settings.data))


def losses(result: Result) -> list[float]:
    lines = (result.folder / "history.csv").read_text().splitlines()[1:]
    return [float(line.split(",")[1]) for line in lines]


def test_a_gpu_computes_in_bf16_and_says_so(tmp_path):
    metrics = run_on("auto", tmp_path).metrics
    assert metrics["precision"] == "bf16"
    assert metrics["device"] == torch.cuda.get_device_name()
    assert "allocator" in metrics["peak_memory_measures"]


def test_in_fp32_it_trains_as_the_cpu_does(tmp_path):
    on_gpu, on_cpu = (
        run_on(device, tmp_path / device, "precision=fp32", steps=12) for device in ("cuda", "cpu")
    )
    assert losses(on_gpu) == pytest.approx(losses(on_cpu), rel=2e-3)
    accuracies = [each.metrics["zero_shot_accuracy_percent"] for each in (on_gpu, on_cpu)]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_half_precision_the_loss_falls(tmp_path, precision):
    seen = losses(run_on("cuda", tmp_path, f"precision={precision}", steps=80))
    assert sum(seen[-10:]) < 0.8 * sum(seen[:10])


@pytest.mark.parametrize("memory", ["fast", "balanced", "small"])
def test_steps_never_wait_for_the_gpu(tmp_path, monkeypatch, memory):
    from so_clip import train

    step = train.train_step
    seen = []

    def watched(*arguments, **options):
        # The first steps make state, and compile; the read of the losses is not of a step.
        seen.append(len(seen) > 3)
        torch.cuda.set_sync_debug_mode("error" if seen[-1] else "default")
        try:
            return step(*arguments, **options)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(train, "train_step", watched)
    run_on("cuda", tmp_path, f"memory={memory}", "schedule.stop_loss=0", steps=24)
    assert sum(seen) == 20


def test_the_peak_is_the_allocators(tmp_path):
    metrics = run_on("cuda", tmp_path).metrics
    parts = ("weights_mib", "gradients_mib", "optimizer_state_mib", "activations_mib")
    assert sum(metrics[part] for part in parts) == pytest.approx(metrics["peak_memory_mib"])
    assert min(metrics[part] for part in parts) > 0
    assert metrics["peak_memory_mib"] <= torch.cuda.get_device_properties(0).total_memory / MIB


def test_a_run_goes_on_from_its_checkpoint_on_the_gpu(tmp_path, monkeypatch):
    from so_clip import run as run_module
    from so_clip.train import train

    whole = losses(run_on("cuda", tmp_path / "whole", "precision=fp32", steps=30))

    class PowerCut(BaseException):
        pass

    def cut_short(*arguments, after_step=lambda step: (), **options):
        def stop(step):
            if step == 20:
                raise PowerCut
            return after_step(step)

        return train(*arguments, after_step=stop, **options)

    often = "checkpoint_seconds=0.001"
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "train", cut_short)
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
