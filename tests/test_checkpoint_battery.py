"""An interrupted run of any method continues bit for bit as the undisturbed one.

Both parts of a run are in one process here. The second part knows the first only by its checkpoint.
"""

import random
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from so_clip.build import assemble_model
from so_clip.clip.prompts import templated
from so_clip.config.settings import Settings
from so_clip.data.batches import TrainBatches
from so_clip.methods.model import Model
from so_clip.results.progress import Progress
from so_clip.results.run_folder import CHECKPOINT_FILE, RunFolder
from so_clip.run import Run
from so_clip.train import WATCHED_STEPS
from tests.helpers.battery_parts import (
    NAMES,
    TRAINED,
    batches_of,
    logits_of,
    model_of,
    settings_of,
)
from tests.helpers.captured_runs import emulated_graphs
from tests.helpers.small_families import small_backbone, small_images

STEPS = 24
# The method with the most state. The other methods are slow tests.
FAST = ("so",)
METHODS = [
    method if method in FAST else pytest.param(method, marks=pytest.mark.slow) for method in TRAINED
]
# A step soon after a restart or a change of stage, where most state can be lost.
CUT = {"relora": 22, "two_stage": 16, "adalora": 14}
ALWAYS = 1e-9  # seconds
OVERRIDES = {"two_stage": ("adapter.first_stage=0.6",), "adalora": ("adapter.interval=2",)}


class CutOff(KeyboardInterrupt):
    """Ends a run as an error or a signal does."""


class Cut(TrainBatches):
    """Batches that end the run after a number of them."""

    left = 10**9

    def epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in super().epoch():
            if not self.left:
                raise CutOff
            self.left -= 1
            yield batch


def _adapted(
    method: str, folder: Path, batches: int, seconds: float, *more: str, family: str = ""
) -> dict[str, Any]:
    """Do the rest of a run, with at most this many batches; return its results."""
    settings = settings_of(method, STEPS, *OVERRIDES.get(method, ()), *more)
    placement = settings.placement.model_copy(update={"checkpoint_seconds": seconds})
    settings = settings.model_copy(update={"placement": placement})
    model = _family_model(settings, family) if family else model_of(settings)
    few = batches_of(settings, model, 3, Cut)
    assert isinstance(few, Cut)
    few.left = batches
    folder.mkdir(exist_ok=True)
    run = Run(settings, model, RunFolder(folder), few, "run")
    done = run.adapt(Progress(None, 0))
    files = {path.name: path.read_text() for path in folder.glob("*.csv")}
    return {
        "history": done.history,
        "changed": done.changed_parameters,
        "memory": run.peak_memory.result(),
        "logits": _family_logits(model) if family else logits_of(model),
        "files": files,
        "left": few.left,
    }


def _family_model(settings: Settings, family: str) -> Model:
    return assemble_model(settings, small_backbone(family), templated(NAMES, ["a photo of a {}."]))


def _family_logits(model: Model) -> Tensor:
    with torch.inference_mode():
        logits_BK: Tensor = model.classifier(small_images(model.classifier.backbone, 4))
    return logits_BK


def _check_equal(resumed: dict[str, Any], undisturbed: dict[str, Any]) -> None:
    assert resumed["history"] == undisturbed["history"]
    assert torch.equal(resumed["logits"], undisturbed["logits"])
    for key in ("changed", "memory", "files"):  # the memory is what the first process measured
        assert resumed[key] == undisturbed[key], key


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_run_ends_as_the_undisturbed_one(method, tmp_path):
    undisturbed = _adapted(method, tmp_path / "whole", 10**9, 0)
    assert not (tmp_path / "whole" / CHECKPOINT_FILE).exists()
    draw = random.Random(zlib.crc32(method.encode()))
    cut = CUT.get(method, draw.randrange(WATCHED_STEPS + 1, STEPS))
    with pytest.raises(CutOff):
        _adapted(method, tmp_path / "cut", cut, ALWAYS)
    resumed = _adapted(method, tmp_path / "cut", STEPS, ALWAYS)
    assert resumed["left"] == cut, "it started from the beginning"
    _check_equal(resumed, undisturbed)
    # A run that was interrupted in its evaluation does not train again.
    _check_equal(_adapted(method, tmp_path / "cut", 0, ALWAYS), undisturbed)


@pytest.mark.parametrize(
    "method",
    [
        "taskres",
        *(
            pytest.param(method, marks=pytest.mark.slow)
            for method in ("so", "so_age", "clip_lora", "dora", "adalora", "relora", "two_stage")
        ),
    ],
)
def test_an_interrupted_run_with_captured_steps_does_so_too(method, tmp_path):
    """Each process takes its first steps eagerly, and then records steps again."""
    with emulated_graphs() as recorders:
        undisturbed = _adapted(method, tmp_path / "whole", 10**9, 0)
        cut = CUT.get(method, 19)
        with pytest.raises(CutOff):
            _adapted(method, tmp_path / "cut", cut, ALWAYS)
        resumed = _adapted(method, tmp_path / "cut", 2 * STEPS, ALWAYS)
    assert resumed["left"] == STEPS + cut, "it started from the beginning"
    assert all(recorder.recordings for recorder in recorders[:2])
    _check_equal(resumed, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("so", ("optimizer.sampled_gradients=true",)),
        ("so_age", ("optimizer.sampled_gradients=true", "precision=bf16")),
        ("adamw", ("precision=fp16",)),  # its scale is not found yet
        ("clip_lora", ("memory=small", "text_budget_mib=0.05")),  # dropout in recomputed blocks
        ("wise_ft", ("adapter.interpolation=0.5",)),
    ],
)
def test_interrupted_runs_with_other_options_do_so_too(method, more, tmp_path):
    undisturbed = _adapted(method, tmp_path / "whole", 10**9, 0, *more)
    with pytest.raises(CutOff):
        _adapted(method, tmp_path / "cut", 17, ALWAYS, *more)
    resumed = _adapted(method, tmp_path / "cut", STEPS, ALWAYS, *more)
    assert resumed["left"] == 17
    _check_equal(resumed, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["so", "lora"])
@pytest.mark.parametrize("family", ["siglip", "convnext", "pe_core", "vitamin", "swin", "mt5"])
def test_an_interrupted_run_on_a_backbone_of_another_family_ends_alike(family, method, tmp_path):
    undisturbed = _adapted(method, tmp_path / "whole", 10**9, 0, family=family)
    with pytest.raises(CutOff):
        _adapted(method, tmp_path / "cut", WATCHED_STEPS + 3, ALWAYS, family=family)
    _check_equal(_adapted(method, tmp_path / "cut", STEPS, ALWAYS, family=family), undisturbed)
