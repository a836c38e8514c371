"""A run on tensors that have shapes but no values, watched and counted as it goes.

Everything that happens to a model here is done by the run's own functions, so that a forecast says
of them what is true of them, however they change. Only the images and the weights are not there.

Tensor names end in their shape: B images of a batch, C H W pixels.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)

from so_clip.adapt.model import Model
from so_clip.build import assemble_model, build_optimizer, check_classes, class_prompts, load
from so_clip.clip.backbone import Backbone
from so_clip.clip.classifier import Classifier
from so_clip.config.resolve import resolved_text_budget
from so_clip.config.settings import Settings
from so_clip.data.cards.card import DatasetCard
from so_clip.errors import InputError
from so_clip.evaluate.evaluator import watch_batch
from so_clip.forecast.disk import disk_figures
from so_clip.forecast.flops import Flops, counted, counter
from so_clip.forecast.test_sets import Tested, tested_sizes, training_card
from so_clip.optim.sampled import GradScaler
from so_clip.runtime.peak_memory import PeakMemory
from so_clip.runtime.precision import Precision, pick_precision
from so_clip.train import train_step

CPU = torch.device("cpu")
MODELS = "CPU tensors"
MODELS_CUDA = "CPU tensors; on CUDA other kernels and the allocator make a difference"


def forecast(settings: Settings, card: DatasetCard) -> dict[str, Any]:
    """Return what a run would take: MiB of memory, FLOPs, and bytes on disk.

    Args:
        settings: of the run.
        card: of its dataset, whose class names and sizes count.

    Raises:
        InputError: what a run would refuse, or shapes that follow from values.
    """
    settings = _on_its_device(settings)
    check_classes(settings.method, settings.data)
    tested, card = tested_sizes(settings, card), training_card(settings, card)
    # What adapters make in `start` is no fake yet.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        model = fake_model(settings, card, mode)
        with mode:
            evaluation = _evaluation(settings, tested, model)
            training = _training(settings, card, model) if settings.trains else {}
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise InputError(
            f"this run cannot be forecast: the shapes in {error} follow from values, which are "
            "not there. For optimizer=so, take gradient_selection=random or density_ratio=1."
        ) from error
    memory = training.pop("memory", evaluation.pop("memory"))
    dimensions = evaluation.pop("dimensions")
    return {
        "dataset": settings.data.dataset,
        "backbone": settings.backbone.architecture,
        "method": settings.method.name,
        "precision": settings.placement.precision,
        "shots": settings.data.shots,
        "models": MODELS if settings.placement.device == "cpu" else MODELS_CUDA,
        "trainable_parameters": sum(value.numel() for value in model.parameters.values()),
        **memory,
        **evaluation,
        "steps": settings.schedule.max_steps,
        **training,
        "run_flops": evaluation["evaluation_flops"] + training.get("training_flops", 0),
        **disk_figures(settings, card, tested, model.classifier.backbone, dimensions),
    }


def _on_its_device(settings: Settings) -> Settings:
    """Resolve precision=auto and text_budget_mib=auto for the run's device, present or not."""
    placement = settings.placement
    cuda = placement.device.startswith("cuda")
    cuda = cuda or (placement.device == "auto" and torch.cuda.is_available())
    precision = pick_precision(placement.precision, torch.device("cuda") if cuda else CPU)
    budget_mib = resolved_text_budget(placement.text_budget_mib, placement.memory, cuda)
    placement = placement.model_copy(update={"precision": precision, "text_budget_mib": budget_mib})
    return settings.model_copy(update={"placement": placement})


def fake_model(settings: Settings, card: DatasetCard, mode: FakeTensorMode) -> Model:
    """Build the run's model without values.

    Prompts do have values, since which tokens they share decides how they are packed.
    """
    with mode:
        backbone = load(settings.backbone, settings.data.seed, weightless=True)
    prompts = class_prompts(settings.data.template, card.class_names, card)
    model = assemble_model(settings, backbone, prompts)
    _forget_values(model.classifier, mode)
    if model.adapter is not None:
        support = _NoImages(settings.data.shots, model.classifier, backbone, mode)
        model.adapter.start(model.classifier, support)
        _forget_values(model.classifier, mode)
    named = model.classifier.named()
    # Whether a step overflows, and is left out, is a question of values.
    model.precision.scaler = GradScaler(CPU.type, enabled=False)
    return replace(model, parameters={name: named[name] for name in model.parameters})


class _NoImages:
    """The few shots of a run, without images: see `so_clip.adapt.adapter.FewShots`."""

    def __init__(
        self, shots: int, classifier: Classifier, backbone: Backbone, mode: FakeTensorMode
    ) -> None:
        self._classes, self._shots, self._mode = classifier.class_count, shots, mode
        self._backbone = backbone

    @property
    def labels_N(self) -> Tensor:
        return torch.arange(self._classes).repeat_interleave(self._shots)

    def encode(self, views: int = 0) -> Tensor:
        side = self._backbone.image_size
        with self._mode, torch.no_grad():
            one_BD = self._backbone.encode_image(torch.zeros(1, 3, side, side, dtype=torch.uint8))
            return one_BD.expand(max(1, views), self._classes * self._shots, -1).clone()


def _forget_values(module: nn.Module, mode: FakeTensorMode) -> None:
    """Make fake what is not: prompts, and what an adapter has added."""
    for child in module.modules():
        held: list[dict[str, Any]] = [vars(child)[kind] for kind in ("_parameters", "_buffers")]
        for own in held:
            for name, value in own.items():
                if value is not None and not isinstance(value, FakeTensor):
                    own[name] = mode.from_tensor(value)


def _evaluation(settings: Settings, tested: Sequence[Tested], model: Model) -> dict[str, Any]:
    """Evaluate one batch as the run does before training: memory, and FLOPs of all test sets.

    Prompts of other classes count as much as those that the model has.
    """
    classifier, images = model.classifier, sum(each.images for each in tested)
    batch = min(settings.evaluation.batch_size, tested[0].images)
    images_BCHW, _ = _batch(model, batch)
    precision = Precision(settings.evaluation_precision, CPU)
    peak = PeakMemory(classifier, None, CPU)
    watch_batch(classifier, images_BCHW, CPU, precision, peak)
    # Not in inference mode, from which operations arrive as they are called, not as they are done.
    with torch.no_grad(), precision.autocast(), classifier.held_classes():
        with counter() as of_images:
            image_BD = classifier.backbone.encode_image(images_BCHW)
        classifier.classes()  # once for all logits, and counted by itself
        with counter() as of_logits:
            classifier.logits(image_BD)
        with counter() as of_classes:
            classifier.backbone.encode_text(classifier.prompts)
    encoded = images * of_images.get_total_flops() // batch
    own = classifier.class_count
    pairs = sum(each.images * each.classes for each in tested)
    named = pairs * of_logits.get_total_flops() // (batch * own)
    classes = sum(each.classes for each in tested) * of_classes.get_total_flops() // own
    flops = encoded + named + classes
    if settings.trains:
        flops += named
        flops += encoded if classifier.trains("vision") else 0
        flops += classes if classifier.trains("text") else 0
    memory = peak.result()
    return {
        "memory": memory,
        "dimensions": image_BD.shape[1],
        "test_images": images,
        "evaluation_peak_memory_mib": memory["peak_memory_mib"],
        "evaluation_flops": flops,
    }


def _training(settings: Settings, card: DatasetCard, model: Model) -> dict[str, Any]:
    """Take a full training step that finds the optimizer's state, and so has a training's peak.

    The last step of an epoch may have fewer images; its FLOPs are counted by themselves. So are
    those of a later stage, where an adapter has stages.
    """
    assert model.adapter is not None
    optimizer = build_optimizer(settings.method.optimizer, model)
    schedule, images = settings.schedule, settings.data.shots * card.sizes["classes"]
    if schedule.max_steps > 1:
        _make_state(optimizer)
    full = min(schedule.batch_size, images)
    epoch, last = -(-images // full), images % full
    peak = PeakMemory(model.classifier, optimizer, CPU)
    steps: list[Flops] = []
    total = 0
    ends = [step for step in model.adapter.stage_ends() if step < schedule.max_steps]
    for begin, end in pairwise([0, *ends, schedule.max_steps]):
        if begin:
            with counter() as of_change:
                model.adapter.after_step(model.classifier, begin)
            total += of_change.get_total_flops()
        small_steps = end // epoch - begin // epoch if last else 0
        small = _step(model, optimizer, last) if small_steps else Flops()
        with nullcontext() if steps else peak:
            steps.append(_step(model, optimizer, full))
        total += (end - begin - small_steps) * steps[-1].total + small_steps * small.total
    return {
        "memory": peak.result(),
        "batch_size": full,
        "forward_flops_per_step": steps[0].forward,
        "backward_flops_per_step": steps[0].backward,
        "flops_per_step": steps[0].total,
        "training_flops": total,
    }


def _make_state(optimizer: torch.optim.Optimizer) -> None:
    """Make the optimizer's state as its first step does, without a pass through the model."""
    for group in optimizer.param_groups:
        # SO's steps differ where a support is drawn anew; let the one that counts be such a step.
        group |= {"T": 1} if group.get("T") else {}
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _step(model: Model, optimizer: torch.optim.Optimizer, images: int) -> Flops:
    assert model.adapter is not None
    classifier = model.classifier
    images_BCHW, labels_B = _batch(model, images)
    with counted(classifier, optimizer) as flops:
        train_step(
            classifier,
            images_BCHW,
            labels_B,
            optimizer=optimizer,
            precision=model.precision,
            penalty=partial(model.adapter.penalty, classifier),
        )
    return flops


def _batch(model: Model, images: int) -> tuple[Tensor, Tensor]:
    side = model.classifier.backbone.image_size
    images_BCHW = torch.zeros(images, 3, side, side, dtype=torch.uint8)
    return images_BCHW, torch.zeros(images, dtype=torch.int64)
