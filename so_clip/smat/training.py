"""Meta-training: tasks in, updates of the experts, the router and the Lagrange multipliers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.utils._python_dispatch import _disable_current_modes

from so_clip.clip.backbone import Backbone
from so_clip.errors import InputError, RunFailed
from so_clip.runtime.precision import Precision
from so_clip.smat.model import Smat
from so_clip.smat.options import (
    AUTO,
    RELEASED_EPOCH_TASKS,
    RELEASED_EPOCHS,
    RELEASED_WARMUP_EPOCHS,
    TrainingOptions,
)
from so_clip.smat.router import expert_weights
from so_clip.smat.task import Task, class_means
from so_clip.smat.task_loss import TaskLosses

# The rate of the masks for each logit of an expert: 1e6 for the 21.7 M weights of a ViT-S.
_MASK_RATE_PER_LOGIT = 1e6 / 21_665_664
# The released code nearly stops its first epoch with this rate.
_RELEASED_FIRST_RATE = 1e-6


@dataclass(frozen=True)
class TaskRecord:
    """The losses and expert_M of a task, on the device, so that no step waits for the host."""

    loss: Tensor
    cross_entropy: Tensor
    distillation: Tensor
    expert_M: Tensor


class MetaTraining:
    """Learns from tasks, one after the other.

    Each task has its own experts' weights from the router, its merged weights and its loss; see
    TaskLosses. An update has the mean gradient of `tasks_per_update` tasks, and

        lambda_m += lambda_lr · (mean of expert_m) · (target - sparsity_m), and 0 at the target
        penalty = sum over m of expert_m · lambda_m · (target - 1 + E[L0]_m)

    Args:
        backbone: on its device; its weights do not change.
        smat: moved to the same device.
        options: see TrainingOptions.
        precision: of the image tower.
        seed: of the expert weights' draws and the masks' noise.

    Raises:
        InputError: the precision is fp16, the head needs texts that the backbone does not have, or
            a weight of the experts is not in the model.
    """

    def __init__(
        self,
        backbone: Backbone,
        smat: Smat,
        options: TrainingOptions,
        precision: Precision,
        seed: int,
    ) -> None:
        if precision.scaler.is_enabled():
            raise InputError(
                f"precision={precision.name}: gradients of single tasks would need a scale of "
                "their own. Use precision=bf16 or precision=fp32."
            )
        device = backbone.mean.device
        if smat.multiplier_M.device != device:  # a forecast's fake tensors cannot move
            smat.to(device)
        self.backbone, self.smat, self.options = backbone, smat, options
        self.losses = TaskLosses(backbone, options, precision)
        self.base = {
            name: backbone.model.get_parameter(name).detach() for name in smat.experts.names
        }
        self.draws = torch.Generator().manual_seed(seed)
        experts, router = smat.experts, smat.router
        mask_lr = options.mask_lr
        if mask_lr == AUTO:
            mask_lr = _MASK_RATE_PER_LOGIT * experts.logits_per_expert
        routed = [parameter for parameter in router.parameters() if parameter.requires_grad]
        self.optimizers: dict[str, Optimizer] = {
            "delta": SGD(
                experts.delta,
                options.delta_lr,
                momentum=options.delta_momentum,
                weight_decay=options.delta_decay,
            ),
            "masks": SGD(experts.log_alpha, float(mask_lr)),
            "router": AdamW(routed, options.router_lr, weight_decay=options.router_decay),
        }
        self.rates = {name: made.param_groups[0]["lr"] for name, made in self.optimizers.items()}
        self.tasks = 0
        self._expert_sum_M = torch.zeros_like(smat.multiplier_M)
        self._set_temperature()

    @property
    def updates(self) -> int:
        """Updates so far."""
        return self.tasks // self.options.tasks_per_update

    def learn(self, task: Task) -> TaskRecord:
        """Add a task's gradients; update after each `tasks_per_update` tasks."""
        smat, options = self.smat, self.options
        smat.train()
        frozen_SD = self.losses.encode_frozen(task)
        prototype_ND = class_means(frozen_SD, task.labels_S, task.classes)
        logit_M = smat.router(prototype_ND, task.class_ND)
        drawn_M = expert_weights(logit_M, smat.temperature, self.draws)
        expert_M = drawn_M.detach()
        noise_seed = None
        if smat.options.noise:
            with _disable_current_modes():  # a forecast has no values, and this one is needed
                noise_seed = int(torch.randint(2**40, (), generator=self.draws))
        weights = smat.experts.merged(self.base, expert_M, noise_seed=noise_seed)
        found = self.losses(task, weights, frozen_SD)
        scale = 1 / options.tasks_per_update
        of_experts_M = smat.experts.backward(
            expert_M,
            found.gradients,
            expert_M * smat.multiplier_M,
            scale=scale,
            noise_seed=noise_seed,
        )
        penalty = options.router_penalty * logit_M.square().mean()
        ((drawn_M * of_experts_M).sum() + scale * penalty).backward()
        self._expert_sum_M += expert_M
        self.tasks += 1
        if self.tasks % options.tasks_per_update == 0:
            self._update()
        self._set_temperature()
        return TaskRecord(found.loss, found.cross_entropy, found.distillation, expert_M)

    def sparsities(self) -> list[float]:
        """Return the share of zeros of each mask."""
        return [float(share) for share in self.smat.experts.sparsity_M()]

    def lambdas(self) -> list[float]:
        """Return the Lagrange multipliers."""
        return [float(value) for value in self.smat.multiplier_M]

    def rate_factor(self, update: int) -> float:
        """Return the factor of the rates at an update, counted from 0; see `_set_rates`."""
        options = self.options
        if options.schedule == "released":
            epoch = update * options.tasks_per_update // RELEASED_EPOCH_TASKS
            return _cosine(epoch, RELEASED_WARMUP_EPOCHS, RELEASED_EPOCHS)
        updates = max(1, options.tasks // options.tasks_per_update)
        warmup = round(options.warmup_share * updates)
        # The first update has a rate above 0.
        return _cosine(update + 1 if update < warmup else update, warmup, updates)

    @torch.no_grad()
    def _update(self) -> None:
        smat, options = self.smat, self.options
        experts = smat.experts
        self._set_rates(self.updates - 1)
        limits = {
            "delta": options.delta_clip,
            "masks": options.mask_clip,
            "router": options.router_clip,
        }
        mean_M = self._expert_sum_M / options.tasks_per_update
        missing_M = (smat.options.sparsity - experts.sparsity_M()).to(mean_M)
        smat.multiplier_M += self._lambda_rate() * mean_M * missing_M
        smat.multiplier_M.clamp_(min=0)
        for name, optimizer in self.optimizers.items():
            parameters = [value for group in optimizer.param_groups for value in group["params"]]
            if limits[name]:
                nn.utils.clip_grad_norm_(parameters, limits[name])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        experts.clamp()
        smat.multiplier_M.masked_fill_(experts.sparsity_M() > smat.options.sparsity, 0)
        self._expert_sum_M.zero_()

    def _set_rates(self, update: int) -> None:
        """Set the rates of an update. The released code's first epoch has rates of 1e-6."""
        factor = self.rate_factor(update)
        for name, optimizer in self.optimizers.items():
            rate = self.rates[name] * factor
            if self._in_released_first_epoch(update) and name != "router":
                rate = _RELEASED_FIRST_RATE
            optimizer.param_groups[0]["lr"] = rate

    def _lambda_rate(self) -> float:
        first = self._in_released_first_epoch(self.updates - 1)
        return _RELEASED_FIRST_RATE if first else self.options.lambda_lr

    def _in_released_first_epoch(self, update: int) -> bool:
        options = self.options
        tasks = update * options.tasks_per_update
        return options.schedule == "released" and tasks < RELEASED_EPOCH_TASKS

    def _set_temperature(self) -> None:
        self.smat.temperature.fill_(self.options.temperature_at(self.tasks))

    def state_dict(self) -> dict[str, Any]:
        """Return everything that training changes, gradients of an unfinished update included."""
        named = dict(self.smat.named_parameters())
        return {
            "smat": self.smat.state_dict(),
            "optimizers": {name: made.state_dict() for name, made in self.optimizers.items()},
            "gradients": {
                name: value.grad for name, value in named.items() if value.grad is not None
            },
            "expert_sum_M": self._expert_sum_M,
            "draws": self.draws.get_state(),
            "tasks": self.tasks,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a state."""
        self.smat.load_state_dict(state_dict["smat"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state_dict["optimizers"][name])
        device = self.smat.multiplier_M.device
        for name, value in self.smat.named_parameters():
            gradient = state_dict["gradients"].get(name)
            value.grad = None if gradient is None else gradient.to(device)
        self._expert_sum_M.copy_(state_dict["expert_sum_M"])
        self.draws.set_state(state_dict["draws"])
        self.tasks = state_dict["tasks"]


def check_finite(record: TaskRecord, tasks: int) -> None:
    """Raise RunFailed if a task's loss is not finite."""
    loss = float(record.loss)
    if not math.isfinite(loss):
        raise RunFailed(
            f"the loss became {loss} at task {tasks}. Lower training.delta_lr, or use "
            "precision=fp32."
        )


def _cosine(step: int, warmup: int, steps: int) -> float:
    """Return the factor of a linear warm-up and a cosine to 0."""
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
