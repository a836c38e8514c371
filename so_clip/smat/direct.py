"""The direct mode: experts are merged for a task and classify its queries, without a gradient."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from so_clip.clip.backbone import Backbone
from so_clip.runtime.precision import Precision
from so_clip.smat.model import Smat
from so_clip.smat.options import HEADS, Head
from so_clip.smat.task import Task, class_means, task_logits, weights_in

FROZEN = "frozen"


@torch.no_grad()
def direct_accuracies(
    backbone: Backbone, smat: Smat, task: Task, precision: Precision
) -> dict[str, float]:
    """Return accuracies of a task's queries, in percent.

    The keys are the heads text, prototype and mean after the merge, and frozen_text,
    frozen_prototype and frozen_mean of the untouched encoder. An encoder without text has only
    prototype and frozen_prototype.
    """
    frozen_SD = _encode(backbone, task.images_SCHW, precision)
    frozen = _accuracies(backbone, task, frozen_SD, precision)
    prototype_ND = class_means(frozen_SD, task.labels_S, task.classes)
    merged = smat.merge(backbone.model, prototype_ND, task.class_ND)
    with weights_in(backbone.model, _frozen_parameters(merged)):
        image_SD = _encode(backbone, task.images_SCHW, precision)
        adapted = _accuracies(backbone, task, image_SD, precision)
    return adapted | {f"{FROZEN}_{head}": value for head, value in frozen.items()}


def _frozen_parameters(weights: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(value, requires_grad=False) for name, value in weights.items()}


def _accuracies(
    backbone: Backbone, task: Task, image_SD: Tensor, precision: Precision
) -> dict[str, float]:
    prototype_ND = class_means(image_SD, task.labels_S, task.classes)
    image_QD = _encode(backbone, task.images_QCHW, precision)
    accuracies: dict[str, float] = {}
    heads: tuple[Head, ...] = HEADS if task.class_ND is not None else ("prototype",)
    for head in heads:
        logits_QN = task_logits(head, image_QD, prototype_ND, task.class_ND, backbone.logit_scale)
        right_Q = logits_QN.argmax(dim=1) == task.labels_Q
        accuracies[head] = 100 * float(right_Q.double().mean())
    return accuracies


def _encode(backbone: Backbone, images_BCHW: Tensor, precision: Precision) -> Tensor:
    with precision.autocast():
        return backbone.encode_image(images_BCHW)
