"""The memory of a meta-training: its largest task and an update run on fake tensors.

Tensor names end in their shape: S few-shot images, Q query images, N classes, D embedding, C H W
pixels.
"""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer

from so_clip.build import load
from so_clip.clip.backbone import Backbone
from so_clip.clip.engine.blocks import Memory
from so_clip.clip.loading.architecture_names import without_path
from so_clip.clip.roles import Part
from so_clip.config.settings import BackboneChoice
from so_clip.forecast.flops import FlopCounter
from so_clip.forecast.meta import TaskSize, largest_task
from so_clip.forecast.predict import CPU, MODELS, MODELS_CUDA
from so_clip.meta.settings import AdapterChoice, MetaSettings
from so_clip.methods.weights import Weights
from so_clip.runtime.peak_memory import MIB, PeakMemory
from so_clip.runtime.precision import Precision, pick_precision
from so_clip.smat.experts import logit_shape
from so_clip.smat.model import Smat
from so_clip.smat.options import Granularity, TrainingOptions
from so_clip.smat.task import Task
from so_clip.smat.training import MetaTraining

_GRANULARITIES: tuple[Granularity, ...] = ("weight", "row", "matrix")
# Parts of a checkpoint file beside its tensors: names, shapes and records.
_HEADER_BYTES = 30_000


def meta_forecast(
    settings: MetaSettings, report: Callable[[str], None] = lambda stage: None
) -> dict[str, Any]:
    """Return the memory in MiB, the operations in FLOP and the disk space in bytes.

    Only the cards of the sources are read.

    Args:
        settings: of the meta-training.
        report: called with the name of each stage before its work.

    Raises:
        InputError: a run would refuse the settings.
    """
    device = settings.placement.device
    is_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    device_type = "cuda" if is_cuda else "cpu"
    precision = pick_precision(settings.placement.precision, torch.device(device_type))
    size = largest_task(settings)
    values = task_forecast(
        settings.backbone,
        settings.adapter,
        settings.training.options,
        size,
        precision=precision,
        memory=settings.placement.memory,
        report=report,
    )
    tasks, per_update = settings.training.tasks, settings.training.tasks_per_update
    return {
        "backbone": without_path(settings.backbone.architecture),
        "precision": precision,
        "models": MODELS_CUDA if is_cuda else MODELS,
        "memory": settings.placement.memory,
        "granularity": settings.adapter.granularity,
        "experts": settings.adapter.experts,
        "head": settings.training.head,
        "tasks": tasks,
        "tasks_per_update": per_update,
        "ways": size.ways,
        "few_shot_images": size.few_shot,
        "query_images": size.queries,
        **values,
        "memory_here_mib": _memory_here_mib(device_type),
        "training_flops": tasks * values["flops_per_task"],
    }


def task_forecast(
    choice: BackboneChoice,
    adapter: AdapterChoice,
    options: TrainingOptions,
    size: TaskSize,
    *,
    precision: str = "fp32",
    memory: Memory = "fast",
    report: Callable[[str], None] = lambda stage: None,
) -> dict[str, Any]:
    """Learn from one task, the last one of an update, on fake tensors; return what it takes.

    Args:
        choice: of the backbone.
        adapter: the weights that experts change, and the model of the experts.
        options: of the training.
        size: of the task.
        precision: fp32 | bf16.
        memory: fast | balanced | small.
        report: called with the name of each stage before its work.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        report("building the model")
        backbone = load(choice, 0, weightless=True).requires_grad_(False)
        backbone.memory = memory
        parts = Weights(adapter.roles, "vision", adapter.position).parts_of(backbone)
        smat = Smat(parts, backbone.dimensions, adapter.model, 0)
        training = MetaTraining(backbone, smat, options, Precision(precision, CPU), 0)
        task = _task(backbone, size)
        report("counting one task and one update")
        _earlier_tasks(training)
        counter = FlopCounter()
        peak = PeakMemory(nn.ModuleList([backbone, smat]), [*training.optimizers.values()], CPU)
        peak.log.after_operation = counter.add
        gradients = [value.grad for value in smat.parameters() if value.grad is not None]
        peak.log.add(gradients, "gradients")
        del gradients
        with peak:
            training.learn(task)
    experts = sum(value.nbytes for value in smat.experts.parameters())
    router = sum(value.nbytes for value in smat.router.state_dict().values())
    return {
        **peak.result(),
        "task_images_bytes": task.images_SCHW.nbytes + task.images_QCHW.nbytes,
        "flops_per_task": counter.total,
        "checkpoint_bytes": experts + router + _HEADER_BYTES,
        "resume_bytes": _resume_bytes(training),
        "changed_weights": smat.experts.count,
        "mask_mib": {name: _mask_mib(parts, adapter.experts, name) for name in _GRANULARITIES},
    }


def _memory_here_mib(device_type: str) -> float | None:
    """Return the memory of this machine, or of its first GPU; None if it is unknown."""
    if device_type == "cuda":
        found = torch.cuda.is_available()
        return torch.cuda.get_device_properties(0).total_memory / MIB if found else None
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / MIB
    except (AttributeError, OSError, ValueError):  # not on every system
        return None


def _mask_mib(parts: Sequence[Part], experts: int, granularity: Granularity) -> float:
    """Return the memory of all mask logits and their gradients."""
    logits = sum(math.prod(logit_shape(part.shape, granularity)) for part in parts)
    return 2 * 4 * experts * logits / MIB


def _task(backbone: Backbone, size: TaskSize) -> Task:
    side = backbone.image_size

    def images(count: int) -> torch.Tensor:
        return torch.zeros(count, 3, side, side, dtype=torch.uint8)

    def labels(count: int) -> torch.Tensor:
        return torch.zeros(count, dtype=torch.int64)

    class_ND = torch.zeros(size.ways, backbone.dimensions) if backbone.has_text else None
    return Task(
        images(size.few_shot),
        labels(size.few_shot),
        images(size.queries),
        labels(size.queries),
        class_ND,
        size.ways,
    )


def _earlier_tasks(training: MetaTraining) -> None:
    """Make the state of the optimizers and the gradients that earlier tasks leave behind."""
    optimizers: list[Optimizer] = [*training.optimizers.values()]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for value in group["params"]:
                value.grad = torch.zeros_like(value)
        optimizer.step()
        if training.options.tasks_per_update == 1:
            optimizer.zero_grad(set_to_none=True)
    training.tasks = training.options.tasks_per_update - 1


def _resume_bytes(training: MetaTraining) -> int:
    """Return the bytes of the state that a killed run resumes from."""
    state = training.state_dict()
    held: list[Any] = [state["smat"], state["optimizers"], state["gradients"]]
    leaves = torch.utils._pytree.tree_leaves(held)
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor))
