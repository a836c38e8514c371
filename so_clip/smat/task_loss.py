"""One task's loss, and its gradients with respect to the merged weights.

Tensor names end in their shape: S few-shot images, Q query images, B images of either, N classes, D
embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.backbone import Backbone
from so_clip.runtime.precision import Precision
from so_clip.smat.options import TrainingOptions
from so_clip.smat.task import Task, class_means, task_logits, weights_in


@dataclass(frozen=True)
class TaskLoss:
    """A task's losses, on the device, and gradients of `loss` by the names of the weights."""

    loss: Tensor
    cross_entropy: Tensor
    distillation: Tensor
    gradients: dict[str, Tensor]


@dataclass(frozen=True)
class _Point:
    """Weights by name, and class prototypes if the head has them, all leaves of a graph."""

    weights: dict[str, nn.Parameter]
    prototype_ND: nn.Parameter | None

    @classmethod
    def at(cls, weights: Mapping[str, Tensor], prototype_ND: Tensor | None) -> "_Point":
        leaves = {name: nn.Parameter(value.detach()) for name, value in weights.items()}
        return cls(leaves, None if prototype_ND is None else nn.Parameter(prototype_ND.detach()))

    @property
    def leaves(self) -> list[nn.Parameter]:
        prototypes = [] if self.prototype_ND is None else [self.prototype_ND]
        return [*self.weights.values(), *prototypes]

    @torch.no_grad()
    def after_step(self, gradients: Sequence[Tensor], rate: float) -> "_Point":
        """Return the point after a step of gradient descent; `gradients` are those of `leaves`."""
        moved = [
            leaf - rate * gradient for leaf, gradient in zip(self.leaves, gradients, strict=True)
        ]
        prototype_ND = None if self.prototype_ND is None else moved[-1]
        return _Point.at(dict(zip(self.weights, moved, strict=False)), prototype_ND)


class TaskLosses:
    """Computes the losses of tasks; all derivatives are first-order.

        W' = W - inner_lr · d CE(few-shot images; W) / dW
        W'' = W' - teacher_lr · d CE(queries; W') / dW'
        distillation = T²/2 · (KL(teacher W'' || W') + KL(frozen encoder || W'))
        loss = (1 - d) · CE(queries; W') + d · distillation

    The prototypes are parameters of both steps, too. Their gradient from the queries then goes to W
    through the few-shot images.

    Args:
        backbone: its image tower has the frozen weights.
        options: see TrainingOptions.
        precision: of the image tower. Heads and losses are float32.
    """

    def __init__(self, backbone: Backbone, options: TrainingOptions, precision: Precision) -> None:
        self.backbone, self.options, self.precision = backbone, options, precision
        self._uses_prototypes = options.head != "text"

    @torch.no_grad()
    def encode_frozen(self, task: Task) -> Tensor:
        """Return the embeddings of the few-shot images by the frozen encoder, image_SD."""
        return self._encode(task.images_SCHW)

    def __call__(self, task: Task, weights: Mapping[str, Tensor], frozen_SD: Tensor) -> TaskLoss:
        """Return the losses of a task, and their gradients with respect to `weights`.

        Args:
            task: see Task.
            weights: W, the merged weights by name.
            frozen_SD: see `encode_frozen`.
        """
        options = self.options
        teachers = []
        if options.distillation and options.frozen_teacher:
            teachers.append(self._frozen_logits(task, frozen_SD))
        start, fast = self._inner_step(task, weights)
        with weights_in(self.backbone.model, fast.weights), torch.enable_grad():
            logits_QN = self._logits(task, task.images_QCHW, fast.prototype_ND)
            cross_entropy = F.cross_entropy(logits_QN, task.labels_Q)
            if options.distillation and options.teacher_lr:
                teachers.append(self._taught_logits(task, fast, cross_entropy))
            distillation = self._distillation(logits_QN, teachers)
            share = options.distillation
            loss = (1 - share) * cross_entropy + share * distillation
            gradients = torch.autograd.grad(loss, fast.leaves)
        named = dict(zip(weights, gradients, strict=False))
        if self._uses_prototypes:
            self._add_through_prototypes(named, task, start, gradients[-1])
        return TaskLoss(loss.detach(), cross_entropy.detach(), distillation.detach(), named)

    def _inner_step(self, task: Task, weights: Mapping[str, Tensor]) -> tuple[_Point, _Point]:
        """Return the weights and prototypes before and after the step on the few-shot images."""
        start = _Point.at(weights, None)
        rate = self.options.inner_lr
        if not rate and not self._uses_prototypes:
            return start, start
        with weights_in(self.backbone.model, start.weights), torch.set_grad_enabled(rate > 0):
            image_SD = self._encode(task.images_SCHW)
            if self._uses_prototypes:
                means_ND = class_means(image_SD.detach(), task.labels_S, task.classes)
                start = _Point(start.weights, nn.Parameter(means_ND))
            if not rate:
                return start, start
            logits_SN = self._classify(task, image_SD, start.prototype_ND)
            loss = F.cross_entropy(logits_SN, task.labels_S)
            gradients = torch.autograd.grad(loss, start.leaves)
        return start, start.after_step(gradients, rate)

    @torch.no_grad()
    def _frozen_logits(self, task: Task, frozen_SD: Tensor) -> Tensor:
        """Return the query logits of the untouched encoder, with prototypes of its own."""
        prototype_ND = class_means(frozen_SD, task.labels_S, task.classes)
        return self._logits(task, task.images_QCHW, prototype_ND)

    def _taught_logits(self, task: Task, fast: _Point, cross_entropy: Tensor) -> Tensor:
        """Return the query logits of the dense teacher. Its weights are freed after that.

        Args:
            task: see Task.
            fast: the student.
            cross_entropy: of the student's query logits, with a graph.
        """
        steps = torch.autograd.grad(cross_entropy, fast.leaves, retain_graph=True)
        taught = fast.after_step(steps, self.options.teacher_lr)
        del steps  # as large as the weights
        with torch.no_grad(), weights_in(self.backbone.model, taught.weights):
            return self._logits(task, task.images_QCHW, taught.prototype_ND)

    def _distillation(self, logits_QN: Tensor, teachers: Sequence[Tensor]) -> Tensor:
        """Return T²/2 · the sum of the teachers' KL divergences, each a mean over queries."""
        temperature = self.options.distillation_temperature
        student_QN = F.log_softmax(logits_QN / temperature, dim=1)
        divergence = logits_QN.new_zeros(())
        for teacher_QN in teachers:
            target_QN = F.log_softmax(teacher_QN / temperature, dim=1)
            divergence = divergence + F.kl_div(
                student_QN, target_QN, reduction="batchmean", log_target=True
            )
        return temperature**2 / 2 * divergence

    def _add_through_prototypes(
        self, gradients: dict[str, Tensor], task: Task, start: _Point, gradient_ND: Tensor
    ) -> None:
        """Add the prototypes' gradient, brought back to the weights before the inner step.

        The few-shot images are encoded once more, so that only one graph is in memory at a time.
        """
        with weights_in(self.backbone.model, start.weights), torch.enable_grad():
            image_SD = self._encode(task.images_SCHW)
            means_ND = class_means(image_SD, task.labels_S, task.classes)
            opened = [*start.weights.values()]
            through = torch.autograd.grad(means_ND, opened, gradient_ND)
        for name, gradient in zip(start.weights, through, strict=True):
            gradients[name] = gradients[name] + gradient

    def _logits(self, task: Task, images_BCHW: Tensor, prototype_ND: Tensor | None) -> Tensor:
        return self._classify(task, self._encode(images_BCHW), prototype_ND)

    def _classify(self, task: Task, image_BD: Tensor, prototype_ND: Tensor | None) -> Tensor:
        return task_logits(
            self.options.head, image_BD, prototype_ND, task.class_ND, self.backbone.logit_scale
        )

    def _encode(self, images_BCHW: Tensor) -> Tensor:
        with self.precision.autocast():
            return self.backbone.encode_image(images_BCHW)
