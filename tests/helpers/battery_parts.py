"""What the batteries over all methods are made of: a small model, a few images, settings."""

from typing import Any

import torch
from torch import Tensor

from so_clip.adapt.model import Model
from so_clip.build import assemble_model
from so_clip.clip.attention import explicit_attention
from so_clip.clip.prompts import templated
from so_clip.config.compose import compose
from so_clip.config.settings import Settings, from_config
from so_clip.data.batches import TrainBatches
from tests.helpers.battery_rows import ROWS
from tests.helpers.small_models import small_backbone

CPU = torch.device("cpu")
NAMES = ("red square", "green square", "blue square", "grey square")
SHOTS, STEPS = 2, 40
FAMILIES: dict[str, dict[str, Any]] = {
    "vit": {},
    "resnet": {"layers": (1, 1, 1, 1), "width": 8, "head_width": 16},
}
TRAINED = [name for name, row in ROWS.items() if row.trains]


def images_of(seed: int) -> tuple[list[Tensor], list[int]]:
    """Return noisy squares whose colour is their class's."""
    draw = torch.Generator().manual_seed(seed)
    images, labels = [], []
    for label in range(len(NAMES)):
        for _ in range(SHOTS):
            image_CHW = torch.randint(100, (3, 40, 40), generator=draw, dtype=torch.uint8)
            if label < 3:
                image_CHW[label] += 120
            images.append(image_CHW)
            labels.append(label)
    return images, labels


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


def model_of(settings: Settings, family: str = "vit") -> Model:
    backbone = small_backbone(**FAMILIES[family])
    explicit_attention(backbone.model)
    return assemble_model(settings, backbone, templated(NAMES, ["a photo of a {}."]))


def batches_of(
    settings: Settings,
    model: Model,
    size: int = 8,
    kind: type[TrainBatches] = TrainBatches,
) -> TrainBatches:
    images, labels = images_of(0)
    side = model.classifier.backbone.image_size
    generator = torch.Generator().manual_seed(settings.data.seed)
    return kind(images, labels, size, side, generator, CPU, scale=(0.8, 1.0), flip=False)


def logits_of(model: Model) -> Tensor:
    images, _ = images_of(1)
    size = model.classifier.backbone.image_size
    with torch.inference_mode():
        logits_BK: Tensor = model.classifier(torch.stack(images)[:, :, :size, :size].contiguous())
    return logits_BK
