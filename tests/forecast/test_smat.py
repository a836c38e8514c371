"""Runs that start from a meta-trained checkpoint: the forecast against real ones."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from so_clip.clip.load import load_backbone
from so_clip.smat.checkpoint_file import save_checkpoint
from so_clip.smat.model import Smat
from so_clip.smat.options import SmatOptions
from tests.helpers.command import call
from tests.helpers.smat_tasks import shake, vision_parts

# Relative to the whole peak, as for other methods.
TOLERANCE = 0.1
PEAKS = ("peak_memory_mib", "start_peak_memory_mib")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    backbone = load_backbone("tiny", "embedded")
    smat = Smat(vision_parts(backbone), backbone.dimensions, SmatOptions(), seed=0)
    shake(smat)
    path = tmp_path_factory.mktemp("meta") / "smat.safetensors"
    save_checkpoint(
        path,
        smat,
        architecture=backbone.description,
        weights_sha256=backbone.weights_sha256,
        about={},
    )
    return path


def forecast(*arguments: str) -> dict[str, Any]:
    done = call("forecast", *arguments, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


@pytest.mark.slow
@pytest.mark.parametrize(
    "chosen",
    [
        ["method=smat", "adapter.head=mean"],
        ["method=smat", "optimizer=so"],
        ["method=smat", "optimizer=adamw", "adapter.head=prototype"],
        ["method=smat_clip_lora"],
    ],
    ids=" ".join,
)
def test_the_memory_is_that_of_a_real_run(chosen, checkpoint, tmp_path):
    arguments = [*chosen, f"adapter.checkpoint={checkpoint}", "device=cpu"]
    arguments.append("evaluation.batch_size=64")
    if chosen != ["method=smat", "adapter.head=mean"]:
        arguments.append("schedule.max_steps=4")
    real = call(f"results_dir={tmp_path}", "evaluation.workers=0", *arguments)
    assert real.code == 0, real.err
    (file,) = tmp_path.glob("*/metrics.json")
    metrics, expected = json.loads(file.read_text()), forecast(*arguments)
    for key in PEAKS:
        assert expected[key] == pytest.approx(metrics[key], rel=TOLERANCE), key
    assert expected["trainable_parameters"] == metrics["trainable_parameters"]
    (adapter,) = tmp_path.glob("*/adapter.safetensors")
    assert 1 <= expected["adapter_bytes"] / adapter.stat().st_size < 3
    # The state of SMAT, the model, and one update at a time.
    smat_mib = (checkpoint.stat().st_size - 20_000) / 2**20
    assert expected["start_peak_memory_mib"] > smat_mib + expected["weights_mib"]


@pytest.mark.slow
def test_a_forecast_changes_no_later_run_of_the_process(checkpoint, tmp_path):
    arguments = ["method=smat", f"adapter.checkpoint={checkpoint}", "evaluation.workers=0"]
    for place in ("before", "after"):
        assert call(f"results_dir={tmp_path / place}", *arguments).code == 0
        forecast(*arguments)
    before, after = (
        load_file(next(tmp_path.glob(f"{place}/*/adapter.safetensors")))
        for place in ("before", "after")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_the_file_of_a_method_that_rewrites_weights_is_no_larger_than_forecast(tmp_path):
    arguments = [
        "method=relora",
        "adapter.every=2",
        "adapter.restart_warmup=1",
        "schedule.max_steps=4",
    ]
    assert call(f"results_dir={tmp_path}", "evaluation.workers=0", *arguments).code == 0
    (adapter,) = tmp_path.glob("*/adapter.safetensors")
    assert 1 <= forecast(*arguments)["adapter_bytes"] / adapter.stat().st_size < 3


def test_a_forecast_without_the_checkpoint_is_refused_as_a_run_is():
    run, forecast = call("method=smat"), call("forecast", "method=smat")
    assert (run.code, forecast.code) == (2, 2)
    assert run.messages == forecast.messages
    assert "adapter.checkpoint=FILE" in forecast.err


def test_a_forecast_refuses_the_checkpoint_of_another_backbone(checkpoint):
    done = call("forecast", "method=smat", "backbone=vit_b32", f"adapter.checkpoint={checkpoint}")
    assert done.code == 2
    assert "belongs to another backbone" in done.err
