"""The forecast against real runs, against FLOPs counted by hand, and without any data."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from so_clip.cli.forecast import table
from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.data.cards.card import load_card
from so_clip.forecast.predict import _for_device
from tests.helpers.command import call, python

MEMORY = ("weights_mib", "gradients_mib", "optimizer_state_mib", "activations_mib")
# Relative to the whole peak; a small category may differ more.
TOLERANCE = 0.1
METHODS = {
    "so": ["experiment=demo", "optimizer.T=3"],
    "importance": ["method=so", "optimizer.gradient_selection=importance", "optimizer.T=3"],
    "adamw": ["method=adamw", "precision=bf16"],
    "clip_lora": ["method=clip_lora"],
    "zero_shot": ["method=zero_shot"],
}


def forecast(*arguments: str) -> dict[str, Any]:
    done = call("forecast", *arguments, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


@pytest.mark.parametrize(
    "method",
    [
        "so",
        pytest.param("zero_shot", marks=pytest.mark.slow),
        pytest.param("importance", marks=pytest.mark.slow),
        pytest.param("adamw", marks=pytest.mark.slow),
        pytest.param("clip_lora", marks=pytest.mark.slow),
    ],
)
def test_the_memory_is_that_of_a_real_run(method, tmp_path):
    arguments = [*METHODS[method], "device=cpu", "evaluation.batch_size=64"]
    if method != "zero_shot":
        arguments.append("schedule.max_steps=4")
    real = call(f"results_dir={tmp_path}", "evaluation.workers=0", *arguments)
    assert real.code == 0, real.err
    (file,) = tmp_path.glob("*/metrics.json")
    metrics = json.loads(file.read_text())
    expected = forecast(*arguments)
    peak = metrics["peak_memory_mib"]
    assert expected["peak_memory_mib"] == pytest.approx(peak, rel=TOLERANCE)
    for part in MEMORY:
        close = pytest.approx(metrics[part], rel=TOLERANCE, abs=0.01 * peak)
        assert expected[part] == close, part
    assert expected["trainable_parameters"] == metrics["trainable_parameters"]
    assert expected["test_images"] == metrics["test_images"]
    _check_disk(expected, file.parent)


def _check_disk(expected: dict[str, Any], folder: Path) -> None:
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size / 1.5 < expected["run_folder_bytes"] < 1.5 * size
    (features,) = (folder.parent / ".features").iterdir()
    assert expected["features_bytes"] == pytest.approx(features.stat().st_size, rel=0.01)


def test_the_flops_are_those_counted_by_hand():
    arguments = ["method=adamw", "adapter.encoder=vision", "schedule.max_steps=3", "shots=4"]
    figures = forecast(*arguments)
    sizes = json.loads(Path("so_clip/assets/tiny.json").read_text())["architecture"]
    vision, embed = sizes["vision_cfg"], sizes["embed_dim"]
    width, depth, patch = vision["width"], vision["layers"], vision["patch_size"]
    hidden = int(width * vision.get("mlp_ratio", 4))
    patches = (vision["image_size"] // patch) ** 2
    tokens = patches + 1

    linear = 2 * (3 * width * width + width * width + 2 * width * hidden)  # a token
    attention = 2 * 2 * tokens * width  # scores and their use, a token
    stem = 2 * patches * 3 * patch * patch * width
    head = 2 * width * embed
    classes = 2 * embed * 10
    # Whole blocks; the last one may be run for the class token alone.
    most = stem + depth * tokens * (linear + attention) + head + classes
    saved = (tokens - 1) * (linear * 3 // 4 + attention)
    assert 32 * (most - saved) <= figures["forward_flops_per_step"] <= 32 * most
    # Forward once more for the inputs' gradients and once for the weights'; no stem, no classes.
    ratio = figures["backward_flops_per_step"] / figures["forward_flops_per_step"]
    assert 1.7 < ratio < 2.6
    # 40 images are an epoch of 32 and 8: in three steps, 72.
    per_image = figures["flops_per_step"] / 32
    assert figures["training_flops"] == pytest.approx(72 * per_image, rel=1e-6)
    assert figures["run_flops"] == figures["training_flops"] + figures["evaluation_flops"]
    # The image tower runs twice, since it is trained; the text tower twice by name only.
    forward_per_image = figures["forward_flops_per_step"] / 32
    images = load_card("digits").sizes["test"]
    assert figures["evaluation_flops"] > 2 * images * forward_per_image * 0.99


@pytest.mark.slow
def test_sampled_gradients_take_fewer_operations_than_whole_ones():
    sampled = forecast("method=so", "schedule.max_steps=1")
    whole = forecast("method=so", "schedule.max_steps=1", "optimizer.sampled_gradients=false")
    assert sampled["forward_flops_per_step"] == whole["forward_flops_per_step"]
    assert sampled["backward_flops_per_step"] < 0.6 * whole["backward_flops_per_step"]
    assert sampled["gradients_mib"] < 0.1 * whole["gradients_mib"]


@pytest.mark.slow
def test_a_forecast_needs_neither_network_nor_data_and_leaves_nothing(tmp_path, monkeypatch):
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    figures = forecast(
        *("dataset=eurosat", "backbone=vit_b16", "shots=5", "data_root=/nonexistent"),
        "device=cuda",
    )
    assert figures["precision"] == "bf16"
    assert [*tmp_path.iterdir()] == []
    # 149,620,737 weights in float32, and the packed prompts.
    assert figures["weights_mib"] == pytest.approx(4 * 149_620_737 / 2**20, rel=0.01)
    assert figures["weights_download_bytes"] in (0, 4 * 149_620_737)
    assert figures["trainable_parameters"] == 122_683_392
    assert "CUDA" in figures["models"]


@pytest.mark.slow
def test_prompts_have_a_larger_budget_on_a_gpu():
    def budget_mib(device: str, *overrides: str) -> float | None:
        settings = from_config(compose([f"device={device}", *overrides]))
        return _for_device(settings).placement.text_budget_mib

    assert (budget_mib("cuda"), budget_mib("cpu")) == (1024, 128)
    assert (budget_mib("cuda", "memory=small"), budget_mib("cpu", "memory=fast")) == (64, 1024)
    assert budget_mib("cuda", "text_budget_mib=7") == 7


@pytest.mark.slow
def test_vit_l14_on_imagenet():
    figures = forecast("dataset=imagenet", "backbone=vit_l14", "shots=16")
    # ViT-L/14's 427,616,513 weights, of which SO's matrices are 24 + 12 blocks' of 12 D^2.
    assert figures["weights_mib"] == pytest.approx(4 * 427_616_513 / 2**20, rel=0.01)
    assert figures["trainable_parameters"] == 12 * (24 * 1024**2 + 12 * 768**2)
    assert figures["test_images"] == 50_000
    assert figures["features_bytes"] == pytest.approx(50_000 * 768 * 4, rel=0.01)
    assert figures["few_shot_images_bytes"] == 16_000 * 3 * figures["image_pixels"]
    # A forward pass takes 162 GFLOP an image (OpenCLIP's table of models), all of the last block
    # included, and evaluation takes two of it.
    images = (figures["evaluation_flops"] / 50_000) / 2
    assert images == pytest.approx(162e9, rel=0.1)
    for row in ("peak memory", "  activations", "one step", "whole run", "weights to download"):
        assert f"\n{row} " in table(figures)


@pytest.mark.slow
def test_base_to_new_trains_on_half_of_the_classes_and_tests_them_all(tmp_path):
    arguments = ["method=adamw", "protocol=base_to_new", "device=cpu", "schedule.max_steps=4"]
    arguments += ["evaluation.batch_size=64"]
    real = call(f"results_dir={tmp_path}", "evaluation.workers=0", *arguments)
    assert real.code == 0, real.err
    (file,) = tmp_path.glob("*/metrics.json")
    metrics, expected = json.loads(file.read_text()), forecast(*arguments)
    peak = metrics["peak_memory_mib"]
    assert expected["peak_memory_mib"] == pytest.approx(peak, rel=TOLERANCE)
    assert expected["test_images"] == 540
    assert expected["batch_size"] == 20
    size = sum(path.stat().st_size for path in file.parent.iterdir())
    assert size / 1.5 < expected["run_folder_bytes"] < 1.5 * size
    features = sum(path.stat().st_size for path in (tmp_path / ".features").iterdir())
    assert expected["features_bytes"] == pytest.approx(features, rel=0.01)


@pytest.mark.slow
def test_transfer_adds_evaluation_and_no_training():
    plain = forecast("method=adamw", "schedule.max_steps=3")
    more = forecast("method=adamw", "schedule.max_steps=3", "transfer=[dtd,imagenet_v2]")
    assert more["training_flops"] == plain["training_flops"]
    assert more["peak_memory_mib"] == pytest.approx(plain["peak_memory_mib"], rel=0.01)
    images = {name: load_card(name).sizes["test"] for name in ("digits", "dtd", "imagenet_v2")}
    assert more["test_images"] == sum(images.values())
    ratio = more["evaluation_flops"] / plain["evaluation_flops"]
    assert ratio == pytest.approx(sum(images.values()) / images["digits"], rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dataset=imagenet_a"], "testing only"),
        (["method=tip_adapter", "protocol=base_to_new"], "cannot predict new ones"),
        (["dataset=imagenett"], "Did you mean 'imagenet'"),
        (["shots=0"], "shots=0"),
        (["--jsn"], "no such flag"),
        (["backbone.architecture=ViT-B-17"], "Did you mean"),
        (["backbone=vit_b16", "backbone.pretrained=openia"], "Did you mean"),
        (["optimizer.gradient_selection=dense"], "cannot be forecast"),
    ],
)
def test_bad_input_is_refused_in_one_message(arguments, message):
    done = call("forecast", *arguments)
    assert (done.code, done.out, len(done.messages)) == (2, "", 1)
    assert message in done.err


@pytest.mark.slow
def test_refusals_and_help_do_not_wait_for_torch():
    code = (
        "import sys; sys.argv[0] = 'so_clip'\n"
        "from so_clip.__main__ import main\n"
        "main()\n"
        "print('torch' in sys.modules)"
    )
    for arguments in (["forecast", "--help"], ["forecast", "shots=0"]):
        assert python(code, *arguments).splitlines()[-1] == "False"
