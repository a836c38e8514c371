"""One task's loss and gradients, against float64 oracles written without the product's code."""

import math
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from so_clip.clip.backbone import Backbone
from so_clip.smat.model import Smat
from so_clip.smat.options import TrainingOptions
from so_clip.smat.router import expert_weights
from so_clip.smat.task import Task, class_means
from so_clip.smat.task_loss import TaskLosses
from tests.helpers.smat_tasks import (
    FP32,
    random_task,
    shake,
    shared_backbone,
    small_smat,
    tiny_backbone,
    training,
)


class _Tower(nn.Module):
    """open_clip's own image tower, for functional_call."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images_BCHW: Tensor) -> Tensor:
        pixels = (images_BCHW.double() / 255 - self.backbone.mean) / self.backbone.std
        return F.normalize(self.backbone.model.encode_image(pixels), dim=-1)


def embed(backbone: Backbone, images_BCHW: Tensor, weights: dict[str, Tensor]) -> Tensor:
    named = {f"backbone.model.{name}": value for name, value in weights.items()}
    found: Tensor = functional_call(_Tower(backbone), named, (images_BCHW,))
    return found


def means(image_SD: Tensor, task: Task) -> Tensor:
    return torch.stack([image_SD[task.labels_S == n].mean(dim=0) for n in range(task.classes)])


def logits(
    backbone: Backbone, head: str, image_BD: Tensor, prototype_ND: Tensor, task: Task
) -> Tensor:
    assert task.class_ND is not None
    text = backbone.logit_scale * image_BD @ task.class_ND.T
    cosine = 10 * F.cosine_similarity(image_BD[:, None], prototype_ND[None], dim=-1)
    return {"text": text, "prototype": cosine, "mean": (text + cosine) / 2}[head]


def oracle(
    backbone: Backbone, task: Task, weights: dict[str, Tensor], options: TrainingOptions
) -> Tensor:
    """Return the loss with a graph to `weights`; steps are detached, prototypes are not."""
    frozen = {name: value.detach() for name, value in backbone.model.named_parameters()}
    head = options.head

    def student(weights: dict[str, Tensor], prototype_ND: Tensor, images: Tensor) -> Tensor:
        return logits(backbone, head, embed(backbone, images, weights), prototype_ND, task)

    prototype_ND = means(embed(backbone, task.images_SCHW, weights), task)
    leaves = {name: value.detach().requires_grad_() for name, value in weights.items()}
    leaf_ND = prototype_ND.detach().requires_grad_()
    inner = F.cross_entropy(student(leaves, leaf_ND, task.images_SCHW), task.labels_S)
    *steps, step_ND = torch.autograd.grad(
        inner, [*leaves.values(), leaf_ND], allow_unused=True, materialize_grads=True
    )
    fast = {
        name: value - options.inner_lr * step
        for (name, value), step in zip(weights.items(), steps, strict=True)
    }
    fast_ND = prototype_ND - options.inner_lr * step_ND
    student_QN = student(fast, fast_ND, task.images_QCHW)
    cross_entropy = F.cross_entropy(student_QN, task.labels_Q)

    taught = {name: value.detach().requires_grad_() for name, value in fast.items()}
    taught_ND = fast_ND.detach().requires_grad_()
    loss = F.cross_entropy(student(taught, taught_ND, task.images_QCHW), task.labels_Q)
    *steps, step_ND = torch.autograd.grad(
        loss, [*taught.values(), taught_ND], allow_unused=True, materialize_grads=True
    )
    rate = options.teacher_lr
    taught = {
        name: value - rate * step for (name, value), step in zip(taught.items(), steps, strict=True)
    }
    teacher_QN = student(taught, taught_ND - rate * step_ND, task.images_QCHW).detach()
    of_frozen = {name: frozen[name] for name in weights}
    frozen_ND = means(embed(backbone, task.images_SCHW, of_frozen), task)
    frozen_QN = student(of_frozen, frozen_ND, task.images_QCHW).detach()

    heat = options.distillation_temperature
    distillation = torch.zeros((), dtype=torch.float64)
    teachers = [teacher_QN] * (rate > 0) + [frozen_QN] * options.frozen_teacher
    for target_QN in teachers:
        target = (target_QN / heat).softmax(dim=1)
        difference = target.log() - (student_QN / heat).log_softmax(dim=1)
        distillation = distillation + heat**2 / 2 * (target * difference).sum(dim=1).mean()
    share = options.distillation
    return (1 - share) * cross_entropy + share * distillation


def hard_concrete(log_alpha: Tensor) -> Tensor:
    return (1.2 * torch.sigmoid(log_alpha / (2 / 3)) - 0.1).clamp(0, 1)


OPTIONS: list[dict[str, Any]] = [
    {"head": "text"},
    {"head": "prototype"},
    {"head": "mean", "inner_lr": 0.05, "teacher_lr": 0.1},
    {"head": "prototype", "inner_lr": 0.0, "distillation": 0.6},
    {"head": "text", "inner_lr": 0.0, "teacher_lr": 0.0},
    {"head": "text", "frozen_teacher": False, "teacher_lr": 0.0, "distillation": 0.0},
    {"head": "mean", "frozen_teacher": False, "inner_lr": 0.02},
    {"head": "text", "distillation": 0.0, "inner_lr": 0.05},
]


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("chosen", OPTIONS, ids=str)
def test_the_gradients_of_one_task_are_those_of_an_oracle(chosen):
    backbone = shared_backbone()
    options = TrainingOptions(**chosen)
    task, smat = random_task(backbone), small_smat(backbone)
    shake(smat)
    weights = smat.experts.merged(
        dict(backbone.model.named_parameters()), torch.tensor([0.3, 0.7], dtype=torch.float64)
    )
    losses = TaskLosses(backbone, options, FP32)
    found = losses(task, weights, losses.encode_frozen(task))
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    wanted = oracle(backbone, task, leaves, options)
    wanted.backward()
    assert torch.allclose(found.loss, wanted, rtol=1e-12)
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        assert torch.allclose(found.gradients[name], leaf.grad, rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize("memory", ["balanced", "small"])
def test_memory_modes_give_the_same_gradients(memory):
    fast, other = shared_backbone(), tiny_backbone()
    other.memory = memory
    options = TrainingOptions(head="mean", inner_lr=0.05, teacher_lr=0.1)
    task, smat = random_task(fast), small_smat(fast)
    shake(smat)
    base = dict(fast.model.named_parameters())
    weights = smat.experts.merged(base, torch.tensor([0.3, 0.7], dtype=torch.float64))
    found = []
    for backbone in (fast, other):
        losses = TaskLosses(backbone, options, FP32)
        found.append(losses(task, weights, losses.encode_frozen(task)))
    for name in weights:
        assert torch.allclose(found[0].gradients[name], found[1].gradients[name], atol=1e-12)


def objective(backbone: Backbone, smat: Smat, task: Task, options: TrainingOptions) -> Tensor:
    """Return the whole loss of one task, with a graph to all parameters of SMAT."""
    base = dict(backbone.model.named_parameters())
    frozen = {name: base[name].detach() for name in smat.experts.names}
    frozen_ND = means(embed(backbone, task.images_SCHW, frozen), task)
    logit_M = smat.router(frozen_ND, task.class_ND)
    draws = torch.Generator().manual_seed(0)  # as MetaTraining draws its first task
    expert_M = expert_weights(logit_M, float(smat.temperature), draws)
    weights, nonzero_M, entries = {}, torch.zeros(len(expert_M), dtype=torch.float64), 0
    for name, delta, log_alpha in zip(
        smat.experts.names, smat.experts.delta, smat.experts.log_alpha, strict=True
    ):
        masks = [hard_concrete(log_alpha[m]) for m in range(len(expert_M))]
        mixed = sum(weight * values for weight, values in zip(expert_M, masks, strict=True))
        weights[name] = frozen[name] + mixed * delta
        alive = torch.sigmoid(log_alpha - 2 / 3 * math.log(0.1 / 1.1))
        covered = alive.expand(len(expert_M), *delta.shape).flatten(1)
        nonzero_M = nonzero_M + covered.sum(dim=1)
        entries += delta.numel()
    penalty = smat.options.sparsity - 1 + nonzero_M / entries
    pressure = (expert_M.detach() * smat.multiplier_M * penalty).sum()
    balance = options.router_penalty * (logit_M**2).mean()
    return oracle(backbone, task, weights, options) + pressure + balance


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    ("granularity", "head"), list(product(["weight", "row", "matrix"], ["text", "prototype"]))[:5]
)
def test_all_gradients_of_a_task_are_those_of_an_oracle(granularity, head):
    backbone = shared_backbone()
    task, smat = random_task(backbone), small_smat(backbone, granularity=granularity)
    shake(smat)
    smat.multiplier_M.copy_(torch.tensor([0.5, 2.0]))
    smat.eval()  # the power iteration of the spectral norm must not move between both passes
    options = {"head": head, "inner_lr": 0.05, "teacher_lr": 0.1, "router_penalty": 0.1}
    meta = training(backbone, smat, **options)
    wanted = objective(backbone, smat, task, meta.options)
    named = {name: value for name, value in smat.named_parameters() if value.requires_grad}
    gradients = torch.autograd.grad(wanted, [*named.values()])
    smat.train = lambda mode=True: smat  # type: ignore[method-assign]
    meta.learn(task)
    for (name, value), gradient in zip(named.items(), gradients, strict=True):
        assert value.grad is not None, name
        # Two tasks per update: half of the gradient.
        assert torch.allclose(2 * value.grad, gradient, rtol=1e-7, atol=1e-10), name


@pytest.mark.slow
def test_gradients_are_those_of_finite_differences():
    # Without an inner step and a dense teacher nothing is detached but the sparsity's weights.
    backbone = shared_backbone()
    task, smat = random_task(backbone), small_smat(backbone, granularity="row")
    shake(smat)
    smat.multiplier_M.copy_(torch.tensor([0.5, 0.0]))
    options = {"head": "mean", "inner_lr": 0.0, "teacher_lr": 0.0, "router_penalty": 0.0}
    meta = training(backbone, smat, **options)
    smat.eval()
    smat.train = lambda mode=True: smat  # type: ignore[method-assign]
    temperature = float(smat.temperature)
    meta.learn(task)
    smat.temperature.fill_(temperature)  # it falls after each task
    step, checked = 1e-6, 0
    experts = smat.experts
    for value in (experts.delta[0], experts.delta[-1], experts.log_alpha[1]):
        assert value.grad is not None
        flat, gradient = value.data.view(-1), value.grad.view(-1)
        for index in gradient.abs().topk(3).indices.tolist():
            middle, ends = float(flat[index]), []
            for moved in (middle + step, middle - step):
                flat[index] = moved
                ends.append(float(objective(backbone, smat, task, meta.options).detach()))
            flat[index] = middle
            slope = (ends[0] - ends[1]) / (2 * step)
            assert 2 * float(gradient[index]) == pytest.approx(slope, rel=1e-5, abs=1e-9)
            checked += 1
    assert checked == 9


def test_one_full_expert_without_distillation_is_first_order_maml_with_prototypes():
    backbone = shared_backbone()
    task = random_task(backbone, queries=4)
    smat = small_smat(backbone, experts=1)
    shake(smat)
    with torch.no_grad():
        for log_alpha in smat.experts.log_alpha:
            log_alpha.fill_(4.6)  # a mask of ones
    rate = 0.1
    options = {"head": "prototype", "distillation": 0.0, "inner_lr": rate, "router_penalty": 0.0}
    meta = training(backbone, smat, **options)
    meta.learn(task)

    base = dict(backbone.model.named_parameters())
    start = {
        name: (base[name] + delta).detach().requires_grad_()
        for name, delta in zip(smat.experts.names, smat.experts.delta, strict=True)
    }
    prototype_ND = class_means(
        embed(backbone, task.images_SCHW, start), task.labels_S, task.classes
    )
    head = prototype_ND.detach().requires_grad_()

    def loss_of(weights: dict[str, Tensor], head: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        cosine = 10 * embed(backbone, images, weights) @ F.normalize(head, dim=-1).T
        return F.cross_entropy(cosine, labels)

    inner = loss_of(start, head, task.images_SCHW, task.labels_S)
    *steps, head_step = torch.autograd.grad(inner, [*start.values(), head])
    moved = {
        name: (value - rate * step).detach().requires_grad_()
        for (name, value), step in zip(start.items(), steps, strict=True)
    }
    moved_head = (head - rate * head_step).detach().requires_grad_()
    outer = loss_of(moved, moved_head, task.images_QCHW, task.labels_Q)
    *outer_steps, outer_head = torch.autograd.grad(outer, [*moved.values(), moved_head])
    through = torch.autograd.grad(prototype_ND, [*start.values()], outer_head)
    for delta, first, second in zip(smat.experts.delta, outer_steps, through, strict=True):
        assert torch.allclose(2 * delta.grad, first + second, rtol=1e-9, atol=1e-13)
