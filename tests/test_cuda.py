"""Runs on a GPU: autocast, gradient scaling, CUDA graphs, synchronisation and the allocator."""

from pathlib import Path

import pytest
import torch
from torch import nn

from so_clip.build import build_model, build_optimizer
from so_clip.capture.captured_step import WARM_UP_STEPS, CapturedStep
from so_clip.config.resolve import resolved
from so_clip.data.batches import TrainBatches
from so_clip.data.run_data import gather
from so_clip.optim.sampled_gradient import values_of
from so_clip.optim.sampled_product import sampled_product
from so_clip.results.run_folder import CHECKPOINT_FILE
from so_clip.runtime.peak_memory import MIB
from so_clip.system.paths import CONF_DIR
from tests.helpers.device_checks import (
    check_half_copies,
    check_losses,
    check_resume,
    demo,
    losses,
    power_cut_at,
    run_on,
)
from tests.helpers.kernel_rows import Case, Rows, rule_with

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

METHODS = sorted(path.stem for path in (CONF_DIR / "method").glob("*.yaml"))


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
    options = (f"memory={memory}", "schedule.stop_loss=0", "graph=false")
    run_on("cuda", tmp_path, *options, steps=24)
    assert sum(seen) == 20


def test_the_peak_comes_from_the_allocator(tmp_path):
    metrics = run_on("cuda", tmp_path).metrics
    parts = ("weights_mib", "gradients_mib", "optimizer_state_mib", "activations_mib")
    assert sum(metrics[part] for part in parts) == pytest.approx(metrics["peak_memory_mib"])
    assert min(metrics[part] for part in parts) > 0
    assert metrics["peak_memory_mib"] <= torch.cuda.get_device_properties(0).total_memory / MIB


def test_a_run_resumes_from_its_checkpoint_on_the_gpu(tmp_path):
    options = ("precision=fp32", "graph=false")
    whole = losses(run_on("cuda", tmp_path / "whole", *options, steps=30))

    often = "checkpoint_seconds=0.001"
    with power_cut_at(20):
        run_on("cuda", tmp_path / "cut", *options, often, steps=30)
    assert [*(tmp_path / "cut").glob(f"*/{CHECKPOINT_FILE}")]
    resumed = losses(run_on("cuda", tmp_path / "cut", *options, often, steps=30))
    assert resumed[:15] == pytest.approx(whole[:15], rel=1e-5)
    assert resumed == pytest.approx(whole, rel=1e-2)


# Methods whose training steps a CUDA graph cannot hold.
EAGER = ("galore", "so_importance", "so_importance_random", "so_random")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_on_the_gpu(tmp_path, method):
    result = run_on("cuda", tmp_path, f"method={method}", "schedule.stop_loss=0", steps=20)
    assert 5 < result.metrics["accuracy_percent"] <= 100
    seen = losses(result)
    assert all(torch.isfinite(torch.tensor(seen)))
    if len(seen) > WARM_UP_STEPS:
        graph = result.metrics["graph"]
        assert graph.startswith("eager: ") if method in EAGER else graph == "captured"


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=so",),
        ("method=so", "memory=balanced"),
        ("method=adamw",),
        ("method=clip_lora",),
        ("method=lora", "adapter.dropout=0.2"),
        ("method=coop",),
        ("method=adalora",),
    ],
    ids=" ".join,
)
def test_captured_steps_have_the_losses_of_eager_ones(tmp_path, overrides):
    check_losses("cuda", tmp_path, *overrides)


def test_captured_steps_in_bf16_have_the_losses_of_eager_ones(tmp_path):
    seen = []
    for graph in ("auto", "false"):
        options = ("precision=bf16", "schedule.stop_loss=0", f"graph={graph}")
        seen.append(losses(run_on("cuda", tmp_path / graph, *options, steps=60)))
    assert seen[0][:20] == pytest.approx(seen[1][:20], rel=2e-2, abs=2e-2)


def test_relora_is_captured_again_after_each_restart(tmp_path):
    check_losses("cuda", tmp_path, "method=relora", "adapter.every=25")


def test_two_shapes_of_batches_are_captured(tmp_path):
    check_losses("cuda", tmp_path, "schedule.batch_size=24")  # 24 and 16 of 40 images


@pytest.mark.parametrize("method", ["so", "adamw", "clip_lora"])
def test_a_run_resumes_after_its_capture(tmp_path, method):
    check_resume("cuda", tmp_path, f"method={method}")


@pytest.mark.parametrize("method", ["so", "adamw", "clip_lora"])
def test_replayed_steps_never_wait_for_the_gpu(tmp_path, monkeypatch, method):
    replay = CapturedStep._replay
    seen = []

    def watched(*arguments):
        seen.append(len(seen) > 1)
        torch.cuda.set_sync_debug_mode("error" if seen[-1] else "default")
        try:
            return replay(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(CapturedStep, "_replay", watched)
    result = run_on("cuda", tmp_path, f"method={method}", "schedule.stop_loss=0", steps=40)
    assert result.metrics["graph"] == "captured"
    assert sum(seen) > 20


def test_copies_in_half_precision_equal_casts_after_captured_steps():
    check_half_copies("cuda")


@pytest.mark.parametrize("order", ["prune_first", "update_first"])
def test_the_kernel_equals_the_torch_path_bit_for_bit(order):
    sizes = [294, 1179, 1, 2048]  # 294 and 1179 are of ViT-B/16
    rows = Rows(Case(sizes, rule_with(order=order), half_dtype=torch.bfloat16, device="cuda"))
    for step in range(12):
        if step == 6:
            rows.redraw()
            rows.locate()
        rows.take_step()
        rows.assert_equal()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_entries_of_a_whole_product_are_those_of_the_cpu(dtype):
    draw = torch.Generator().manual_seed(0)
    g_NO, x_NI = (torch.randn(512, width, generator=draw).to(dtype) for width in (96, 160))
    support_M = torch.randperm(96 * 160, generator=draw)[:700].sort().values
    exact_M = (g_NO.double().T @ x_NI.double()).take(support_M)
    on_gpu = [value.cuda() for value in (g_NO, x_NI, support_M)]
    found_M = sampled_product(*on_gpu, 160, "whole")
    assert found_M.dtype == torch.float32
    # A GPU that cannot return float32 rounds the sums to half precision once.
    assert float((found_M.cpu() - exact_M).norm() / exact_M.norm()) < 4e-3


def test_crops_are_those_of_the_cpu():
    draw = torch.Generator().manual_seed(0)
    images = [
        torch.randint(256, (3, 50 + 9 * number, 70), generator=draw, dtype=torch.uint8)
        for number in range(10)
    ]
    batches = {}
    for device in ("cpu", "cuda"):
        made = TrainBatches(images, range(10), 4, 32, torch.Generator().manual_seed(1), device)
        batches[device] = [(crops.cpu().int(), labels.cpu()) for crops, labels in made.epoch()]
    for (ours, our_labels), (theirs, their_labels) in zip(*batches.values(), strict=True):
        assert torch.equal(our_labels, their_labels)
        assert int((ours - theirs).abs().max()) <= 2
