"""A small model, a few images and settings for the tests that train every method."""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from so_clip.build import assemble_model
from so_clip.clip.engine.attention import explicit_attention
from so_clip.clip.prompts import templated
from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.config.settings import Settings
from so_clip.data.batches import TrainBatches
from so_clip.methods.model import Model
from so_clip.results.progress import Progress
from so_clip.results.run_folder import RunFolder
from so_clip.run import Run
from tests.helpers import small_families
from tests.helpers.battery_rows import ROWS
from tests.helpers.small_models import small_backbone
from tests.helpers.smat_tasks import with_smat_checkpoint

CPU = torch.device("cpu")
NAMES = ("red square", "green square", "blue square", "grey square")
SHOTS, STEPS = 2, 24
SMALL: dict[str, dict[str, Any]] = {
    "small_clip": {},
    "small_resnet": {"layers": (1, 1, 1, 1), "width": 8, "head_width": 16},
}
TRAINED = [name for name, row in ROWS.items() if row.trains]


class TrainedMethod:
    """A method after a short training, and its model from before.

    Attributes:
        family: of SMALL, or of tests/helpers/small_families.py.
        before: the state dict before the training.
        tensors_before: the parameters and buffers by the names that the model's modules have.
        changes: of the base's tensors, as the adapter file has them.
        zero_shot_BK, logits_BK: logits of test images before and after the training.
    """

    def __init__(self, method: str, family: str, steps: int, overrides: tuple[str, ...]) -> None:
        self.settings = settings_of(method, steps, *overrides)
        self.family = family
        self.model = model_of(self.settings, family)
        self.before = state_of(self.model)
        self.tensors_before = tensors_of(self.model)
        self.zero_shot_BK = logits_of(self.model)
        batches = batches_of(self.settings, self.model)
        with tempfile.TemporaryDirectory() as folder:
            run = Run(self.settings, self.model, RunFolder(Path(folder)), batches)
            self.adaptation = run.adapt(Progress(None, 0))
        self.memory, self.changes = run.peak_memory.result(), run.changes
        self.logits_BK = logits_of(self.model)


@cache
def trained(
    method: str, *overrides: str, family: str = "small_clip", steps: int = STEPS
) -> TrainedMethod:
    """Return a trained method. All tests of a session share it, so they must not change it."""
    return TrainedMethod(method, family, steps, overrides)


def state_of(model: Model) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers by name."""
    return {name: value.clone() for name, value in model.classifier.state_dict().items()}


def tensors_of(model: Model) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers by the names that the modules have."""
    named = [*model.classifier.named_parameters(), *model.classifier.named_buffers()]
    return {name: value.detach().clone() for name, value in named}


def images_of(seed: int, side: int = 40) -> tuple[list[Tensor], list[int]]:
    """Return noisy squares. The colour shows the class."""
    draw = torch.Generator().manual_seed(seed)
    images, labels = [], []
    for label in range(len(NAMES)):
        for _ in range(SHOTS):
            image_CHW = torch.randint(100, (3, side, side), generator=draw, dtype=torch.uint8)
            if label < 3:
                image_CHW[label] += 120
            images.append(image_CHW)
            labels.append(label)
    return images, labels


@cache
def settings_of(method: str, steps: int = STEPS, *more: str) -> Settings:
    schedule = ["schedule.max_steps=" + str(steps), "schedule.stop_loss=0"]
    return from_config(
        compose(
            [
                f"method={method}",
                f"shots={SHOTS}",
                "augment.scale=[0.8,1.0]",
                *(schedule if ROWS[method].trains else ()),
                *ROWS[method].overrides,
                *more,
            ]
        )
    )


def model_of(settings: Settings, family: str = "small_clip") -> Model:
    if family in SMALL:
        backbone = small_backbone(**SMALL[family])
        explicit_attention(backbone.model)
    else:
        backbone = small_families.small_backbone(family)
    settings = with_smat_checkpoint(settings, backbone)
    return assemble_model(settings, backbone, templated(NAMES, ["a photo of a {}."]))


def resumed(settings: Settings, state: dict[str, Tensor]) -> Model:
    """Return the finished model of a state dict. No few-shot image is read for it."""
    model = model_of(settings)
    assert model.adapter is not None
    model.classifier.load_state_dict(state)
    model.adapter.resume(model.classifier)
    model.classifier.forget_classes()
    return model


def batches_of(
    settings: Settings,
    model: Model,
    size: int = 8,
    kind: type[TrainBatches] = TrainBatches,
) -> TrainBatches:
    side = model.classifier.backbone.image_size
    images, labels = images_of(0, max(40, side))
    generator = torch.Generator().manual_seed(settings.data.seed)
    return kind(
        images, labels, size, side, generator, CPU, scale=settings.augment.scale, flip=False
    )


def logits_of(model: Model) -> Tensor:
    size = model.classifier.backbone.image_size
    images, _ = images_of(1, max(40, size))
    with torch.inference_mode():
        logits_BK: Tensor = model.classifier(torch.stack(images)[:, :, :size, :size].contiguous())
    return logits_BK
