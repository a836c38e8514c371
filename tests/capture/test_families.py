"""Training steps of every family of backbones, recorded as a CUDA graph would."""

import pytest
import torch
from torch import nn

from so_clip.build import assemble_model
from so_clip.clip.prompts import templated
from so_clip.train import compute_gradients
from tests.helpers.battery_parts import NAMES, settings_of
from tests.helpers.emulated_graph import EmulatedRecorder, HostRead
from tests.helpers.small_families import FAMILIES, small_backbone, small_images

CPU = torch.device("cpu")
FAST = ("vit",)


def _gradients(model: nn.Module) -> list[torch.Tensor]:
    named = [(name, value.grad) for name, value in model.named_parameters()]
    return [grad.clone() for _, grad in named if grad is not None]


@pytest.mark.parametrize(
    "family",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def test_a_step_can_be_recorded_or_the_reason_is_known(family):
    settings = settings_of("full", 3)
    model = assemble_model(settings, small_backbone(family), templated(NAMES, ["a photo of a {}."]))
    classifier = model.classifier
    images_BCHW, labels_B = small_images(classifier.backbone, 4), torch.arange(4)

    def gradients() -> None:
        compute_gradients(classifier, images_BCHW, labels_B, precision=model.precision)

    gradients()
    eager = _gradients(classifier)
    classifier.zero_grad(set_to_none=True)
    recorder = EmulatedRecorder(CPU)
    if classifier.not_capturable() is not None:
        with pytest.raises(HostRead, match=r"_local_scalar_dense.* in clip/engine/whole_text"):
            recorder.record(gradients)
        return
    replay = recorder.record(gradients)
    replay()
    for replayed, expected in zip(_gradients(classifier), eager, strict=True):
        assert torch.equal(replayed, expected)
