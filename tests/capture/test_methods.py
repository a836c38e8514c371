"""Every method with captured steps, emulated on the CPU, against eager steps."""

import pytest
import torch

from so_clip.clip.classifier import Classifier
from so_clip.errors import InputError
from tests.helpers.battery_parts import TRAINED
from tests.helpers.battery_rows import cases
from tests.helpers.captured_runs import captured, trained
from tests.helpers.emulated_graph import EmulatedRecorder
from tests.helpers.small_models import small_backbone

FAST = ("taskres",)
# Methods whose steps stay eager, with the reason.
EAGER = {
    "galore": "the step of SavedGaLore is not made for a CUDA graph",
    "so_importance": "optimizer.gradient_selection=importance needs the host in each step",
    "so_importance_random": "optimizer.gradient_selection=importance needs the host in each step",
    "so_random": "optimizer.moment_selection=random needs the host in each step",
}


@pytest.mark.parametrize("method", cases(TRAINED, FAST))
def test_captured_steps_of_every_method_equal_eager_ones(method):
    done = captured(method)
    if method in EAGER:
        assert done.adaptation.graph == f"eager: {EAGER[method]}"
        assert done.recordings == 0
        return
    assert done.adaptation.graph == "captured"
    assert done.recordings >= 2  # batches of 3 images, and of the last 2
    eager = captured(method, records=False)
    assert eager.recordings == 0
    assert done.losses == eager.losses
    assert torch.equal(done.logits_BK, eager.logits_BK)
    for name, value in eager.tensors.items():
        assert torch.equal(done.tensors[name], value), name
    # The first steps before rounding is amplified.
    assert done.losses[:14] == pytest.approx(trained(method).losses[:14], rel=1e-3, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "coop", "linear_probe"])
def test_an_evaluation_during_training_changes_no_recording(method):
    """The text tower is trained, has trained prompts, or is frozen."""
    looked = captured(method, 30, "evaluation.every_steps=4")
    assert looked.recordings == captured(method).recordings
    assert looked.losses == captured(method).losses


def test_classes_with_different_numbers_of_prompts_can_be_captured():
    backbone = small_backbone()
    prompts = backbone.tokenize(["a cat", "a dog", "a big dog", "a red bus"])
    classifier = Classifier(backbone, prompts, prompts_per_class=(1, 2, 1))
    backbone.requires_grad_(True)
    size = backbone.image_size
    images_BCHW = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    eager_BK = classifier(images_BCHW)
    found: list[torch.Tensor] = []
    EmulatedRecorder(torch.device("cpu")).record(lambda: found.append(classifier(images_BCHW)))
    assert torch.equal(found[0], eager_BK)


def test_a_demanded_graph_that_cannot_be_is_refused_before_training():
    with pytest.raises(InputError, match=r"graph=true: the device is cpu.* Use device=cuda, or"):
        trained("so", 2, "graph=true")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("graph=false",), "graph=false"),
        (("precision=fp16",), "precision=fp16 scales gradients"),
    ],
)
def test_steps_stay_eager_with_the_reason(overrides, reason):
    graph = captured("adamw", 1, *overrides).adaptation.graph
    assert graph.startswith("eager: ")
    assert reason in graph
