"""The forecast of a meta-training: against a real task and update, and as a command."""

import json

import pytest
import torch
from torch import nn

from so_clip.build import load
from so_clip.cli.meta import forecast_table
from so_clip.forecast.meta import TaskSize
from so_clip.forecast.meta_task import task_forecast
from so_clip.meta.parse import meta_settings
from so_clip.methods.weights import Weights
from so_clip.runtime.peak_memory import PeakMemory
from so_clip.runtime.precision import Precision
from so_clip.smat.checkpoint_file import save_checkpoint
from so_clip.smat.model import Smat
from so_clip.smat.training import MetaTraining
from tests.helpers.command import call
from tests.helpers.smat_tasks import random_task

TOLERANCE = 0.1  # relative to the whole peak
# A gradient that autograd hands over can count as an activation, so both count together.
PARTS = (("weights_mib",), ("optimizer_state_mib",), ("gradients_mib", "activations_mib"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("granularity", "head", "per_update", "memory"),
    [
        ("weight", "text", 2, "fast"),
        ("weight", "prototype", 1, "small"),
        ("row", "prototype", 2, "fast"),
        ("matrix", "text", 2, "balanced"),
    ],
)
def test_the_memory_is_that_of_a_real_task_and_update(
    granularity, head, per_update, memory, tmp_path
):
    settings = meta_settings(
        [
            *("backbone=tiny", f"adapter.granularity={granularity}", f"training.head={head}"),
            *("adapter.noise=true", "training.tasks=100"),
            f"training.tasks_per_update={per_update}",
        ]
    )
    options, adapter = settings.training.options, settings.adapter
    size = TaskSize(4, 8, 20)
    expected = task_forecast(settings.backbone, adapter, options, size, memory=memory)

    backbone = load(settings.backbone, 1).requires_grad_(False)
    backbone.memory = memory
    parts = Weights(adapter.roles, "vision", adapter.position).parts_of(backbone)
    smat = Smat(parts, backbone.dimensions, adapter.model, 1)
    cpu = torch.device("cpu")
    training = MetaTraining(backbone, smat, options, Precision("fp32", cpu), 1)
    task = random_task(backbone, ways=4, shots=2, queries=5)
    optimizers = [*training.optimizers.values()]
    peak = PeakMemory(nn.ModuleList([backbone, smat]), optimizers, cpu)
    with peak:
        for _ in range(2 * per_update):
            training.learn(task)
    found = peak.result()
    whole = found["peak_memory_mib"]
    assert expected["peak_memory_mib"] == pytest.approx(whole, rel=TOLERANCE)
    for parts in PARTS:
        counted, real = (sum(values[part] for part in parts) for values in (expected, found))
        assert counted == pytest.approx(real, rel=TOLERANCE, abs=0.02 * whole), parts
    path = tmp_path / "smat.safetensors"
    save_checkpoint(path, smat, architecture="", weights_sha256="", about={})
    assert expected["checkpoint_bytes"] == pytest.approx(path.stat().st_size, rel=0.1)


def test_the_command_forecasts_the_largest_task_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["backbone=tiny", "sources=[dtd,fgvc]", "targets=[]", "episodes.ways=[2,5]"]
    words += ["episodes.images=10", "episodes.queries=2", "device=cpu"]
    done = call("meta", "--forecast", "--json", *words)
    assert done.code == 0, done.err
    values = json.loads(done.out)
    sizes = {name: values[name] for name in ("ways", "few_shot_images", "query_images")}
    assert sizes == {"ways": 5, "few_shot_images": 10, "query_images": 10}
    assert values["peak_memory_mib"] > values["weights_mib"] > 0
    assert [*tmp_path.iterdir()] == []
    small = forecast_table(values | {"memory_here_mib": 1.0})
    assert "adapter.granularity=row takes" in small
    assert "memory=small" in small
    enough = forecast_table(values | {"memory_here_mib": 1e9})
    assert enough in small


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--json", "backbone=tiny"], "--json: prints a forecast"),
        (["--forecast", "sources=[dtdd]"], "Did you mean 'dtd'"),
    ],
)
def test_bad_input_is_refused_in_one_message(words, message):
    done = call("meta", *words)
    assert (done.code, done.out, len(done.messages)) == (2, "", 1)
    assert message in done.err
