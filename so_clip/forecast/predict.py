"""Runs a run's own code on fake tensors (shapes without values), and counts memory and operations.

The forecast calls the functions of the run itself, so it stays correct when they change. Only the
images and the weights are missing.

Tensor names end in their shape: B images of a batch, N few-shot images, D features, C H W pixels.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from so_clip.build import assemble_model, build_optimizer, check_classes, check_text, load
from so_clip.clip.backbone import Backbone
from so_clip.clip.classifier import Classifier
from so_clip.clip.loading.architecture_names import without_path
from so_clip.clip.prompts import chosen_prompts
from so_clip.config.resolve import resolved_text_budget
from so_clip.config.settings import Settings
from so_clip.data.cards.card import DatasetCard
from so_clip.evaluate.batch_size import forecast_size
from so_clip.evaluate.evaluator import watch_batch
from so_clip.forecast.disk import adapter_bytes, disk_bytes
from so_clip.forecast.flops import FlopCounter, Flops, counted
from so_clip.forecast.repeats import Repeats
from so_clip.forecast.steps import counted_step, forget_values, make_state, refusal
from so_clip.forecast.test_sets import TestSetSize, test_set_sizes, training_card
from so_clip.methods.adapter import Adapter
from so_clip.methods.model import Model
from so_clip.runtime.peak_memory import PeakMemory, watched_start
from so_clip.runtime.precision import Precision, pick_precision

CPU = torch.device("cpu")
MODELS = "CPU tensors"
MODELS_CUDA = "CPU tensors; on CUDA other kernels and the allocator make a difference"


def forecast(
    settings: Settings, card: DatasetCard, report: Callable[[str], None] = lambda stage: None
) -> dict[str, Any]:
    """Return the memory in MiB, the operations in FLOP and the disk space in bytes of a run.

    Args:
        settings: of the run.
        card: of its dataset; its class names and sizes are used.
        report: called with the name of each stage before its work.

    Raises:
        InputError: a run would refuse the settings, or a shape depends on values.
    """
    settings = _for_device(settings)
    check_classes(settings.method, settings.data)
    check_text(settings)
    test_sets, card = test_set_sizes(settings, card), training_card(settings, card)
    # Adapters make tensors in `start` that are not fake yet.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        report("building the model")
        model, start = _model_and_start(settings, card, mode)
        with mode:
            report("counting one batch of evaluation")
            evaluation = _evaluation(settings, test_sets, model)
            training = {}
            if settings.trains:
                report("counting training steps")
                training = _training(settings, card, model)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise refusal(error) from error
    memory = training.pop("memory", evaluation.pop("memory"))
    dimensions = evaluation.pop("dimensions")
    disk = disk_bytes(settings, card, test_sets, model.classifier.backbone, dimensions)
    adapter = adapter_bytes(settings, model)
    return {
        "dataset": settings.data.dataset,
        "backbone": without_path(settings.backbone.architecture),
        "method": settings.method.name,
        "precision": settings.placement.precision,
        "shots": settings.data.shots,
        "models": MODELS if settings.placement.device == "cpu" else MODELS_CUDA,
        "trainable_parameters": sum(value.numel() for value in model.parameters.values()),
        **memory,
        **evaluation,
        **({"start_peak_memory_mib": start.result()["peak_memory_mib"]} if start else {}),
        "steps": settings.schedule.max_steps,
        **training,
        "run_flops": evaluation["evaluation_flops"] + training.get("training_flops", 0),
        **disk,
        "adapter_bytes": adapter,
        "run_folder_bytes": disk["run_folder_bytes"] + adapter,
    }


def _for_device(settings: Settings) -> Settings:
    """Resolve the options that are `auto` for the run's device, present or not.

    Nobody knows the free memory of that device: evaluation.batch_size=auto is the largest size.
    """
    placement, cuda = settings.placement, _on_gpu(settings)
    batch_size = forecast_size(settings.evaluation.batch_size, cuda)
    evaluation = settings.evaluation.model_copy(update={"batch_size": batch_size})
    precision = pick_precision(placement.precision, torch.device("cuda") if cuda else CPU)
    budget_mib = resolved_text_budget(placement.text_budget_mib, placement.memory, cuda)
    placement = placement.model_copy(update={"precision": precision, "text_budget_mib": budget_mib})
    return settings.model_copy(update={"placement": placement, "evaluation": evaluation})


def _on_gpu(settings: Settings) -> bool:
    device = settings.placement.device
    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


def fake_model(
    settings: Settings,
    card: DatasetCard,
    mode: FakeTensorMode,
    backbone: Backbone | None = None,
    without_files: bool = False,
) -> Model:
    """Build the run's model without values.

    Prompts keep their values at first, because their shared tokens decide how they are packed.

    Args:
        settings: of the run.
        card: of its dataset.
        mode: of the fake tensors.
        backbone: on fake tensors of this mode; None: that of the settings is built.
        without_files: use first values in place of a file that the adapter starts from.
    """
    return _model_and_start(settings, card, mode, backbone, without_files)[0]


def _model_and_start(
    settings: Settings,
    card: DatasetCard,
    mode: FakeTensorMode,
    backbone: Backbone | None = None,
    without_files: bool = False,
) -> tuple[Model, PeakMemory | None]:
    """Return `fake_model`, and the memory of the adapter's start if it has a state to start from.

    A state counts as one that a run would watch; see Adapting.
    """
    if backbone is None:
        with mode:
            backbone = load(settings.backbone, settings.data.seed, weightless=True)
    prompts = chosen_prompts(settings.data.template, card.class_names, card)

    def stand_in(adapter: Adapter, classifier: Classifier) -> None:
        with mode:
            adapter.stand_in(classifier)

    check = stand_in if without_files else None
    model = assemble_model(settings, backbone, prompts, check=check)
    forget_values(model.classifier, mode)
    start = None
    if model.adapter is not None:
        adapter = model.adapter
        if adapter.start_state() is not None and not without_files:
            # Later runs of this process can share a file's state, and they need its values.
            adapter = deepcopy(adapter)
            model = replace(model, adapter=adapter)
        state = adapter.start_state()
        if state is not None:
            forget_values(state, mode)
            start = watched_start(model.classifier, state, CPU)
        few_shots = _FakeFewShots(settings, model, mode, whole_batch=start is not None)
        with start or nullcontext():
            adapter.start(model.classifier, few_shots)
        forget_values(model.classifier, mode)
    named = model.classifier.named()
    # Gradient scaling skips a step if values overflow, and there are no values.
    model.precision.scaler = torch.amp.GradScaler(CPU.type, enabled=False)
    model = replace(model, parameters={name: named[name] for name in model.parameters})
    return model, start


class _FakeFewShots:
    """The few-shot images of a run, without images; see `so_clip.methods.adapter.FewShots`."""

    def __init__(
        self, settings: Settings, model: Model, mode: FakeTensorMode, whole_batch: bool
    ) -> None:
        self._classes, self._shots = model.classifier.class_count, settings.data.shots
        batch = min(self._classes * self._shots, settings.schedule.batch_size)
        self._batch = batch if whole_batch else 1
        self._model, self._mode = model, mode

    @property
    def labels_N(self) -> Tensor:
        return torch.arange(self._classes).repeat_interleave(self._shots)

    @torch.no_grad()
    def encode(self, views: int = 0) -> Tensor:
        backbone = self._model.classifier.backbone
        side = backbone.image_size
        # All batches and views have the same shapes, so one batch is encoded.
        images_BCHW = torch.zeros(self._batch, 3, side, side, dtype=torch.uint8)
        with self._model.precision.autocast():
            image_BD = backbone.encode_image(self._mode.from_tensor(images_BCHW)).float()
        shape = (max(1, views), self._classes * self._shots, image_BD.shape[1])
        return image_BD[:1].expand(shape).clone()


def _evaluation(
    settings: Settings, test_sets: Sequence[TestSetSize], model: Model
) -> dict[str, Any]:
    """Evaluate one batch as the run does before training: memory, and FLOPs of all test sets.

    A class of another test set counts as much as one of the model's classes.
    """
    classifier, images = model.classifier, sum(test_set.images for test_set in test_sets)
    assert settings.evaluation.batch_size != "auto"
    batch = min(settings.evaluation.batch_size, test_sets[0].images)
    images_BCHW, _ = _batch(model, batch)
    precision = Precision(settings.evaluation_precision, CPU)
    peak, counter = PeakMemory(classifier, None, CPU), FlopCounter()
    with (
        counter,
        Repeats(peak, counter).in_towers(classifier),
        counted(classifier.head, counter) as in_head,
        counted(classifier.prompts, counter) as in_prompts,
    ):
        watch_batch(classifier, images_BCHW, CPU, precision, peak)
        whole, encoded = counter.total, in_prompts.total
        has_text = classifier.backbone.has_text
        if not encoded and has_text:  # the head reads no prompts, but zero-shot evaluation does
            with torch.no_grad(), precision.autocast():
                classifier.backbone.encode_text(classifier.prompts)
    if has_text:
        with torch.no_grad(), precision.autocast():
            classifier.classes()  # a frozen text tower's are computed before training
    class_count = classifier.class_count
    pairs = sum(test_set.images * test_set.classes for test_set in test_sets)
    classes = sum(test_set.classes for test_set in test_sets)
    image_flops = images * (whole - in_head.total) // batch
    logit_flops = pairs * (in_head.total - encoded) // (batch * class_count)
    class_flops = classes * in_prompts.total // class_count
    flops = image_flops + logit_flops + class_flops
    if settings.trains:  # evaluated again after training, without the cached part
        flops += logit_flops
        flops += image_flops if classifier.trains("vision") else 0
        flops += class_flops if classifier.trains("text") else 0
    memory = peak.result()
    return {
        "memory": memory,
        "dimensions": classifier.backbone.dimensions,
        "test_images": images,
        "evaluation_batch_size": batch,
        "evaluation_peak_memory_mib": memory["peak_memory_mib"],
        "evaluation_flops": flops,
    }


def _training(settings: Settings, card: DatasetCard, model: Model) -> dict[str, Any]:
    """Take one full training step with an existing optimizer state: that has the peak of training.

    The FLOPs of the last, smaller batch of an epoch, and of the later stages of an adapter, are
    counted separately.
    """
    assert model.adapter is not None
    optimizer = build_optimizer(settings.method.optimizer, model, _on_gpu(settings))
    schedule = settings.schedule
    images = settings.data.shots * card.sizes["classes"] * schedule.crops
    if schedule.max_steps > 1:
        make_state(optimizer)
    full = min(schedule.batch_size, images)
    epoch, last = -(-images // full), 0 if schedule.drop_last else images % full
    peaks: list[PeakMemory] = []
    steps: list[Flops] = []
    total = 0
    ends = [step for step in model.adapter.stage_ends() if step < schedule.max_steps]
    for begin, end in pairwise([0, *ends, schedule.max_steps]):
        if begin:
            with FlopCounter() as stage:
                model.adapter.after_step(model.classifier, begin)
            total += stage.total
        small_steps = end // epoch - begin // epoch if last else 0
        small = counted_step(model, optimizer, _batch(model, last))[0] if small_steps else Flops()
        step, peak = counted_step(model, optimizer, _batch(model, full))
        steps.append(step)
        peaks.append(peak)
        total += (end - begin - small_steps) * step.total + small_steps * small.total
    return {
        "memory": peaks[0].result(),
        "batch_size": full,
        "forward_flops_per_step": steps[0].forward,
        "backward_flops_per_step": steps[0].backward,
        "flops_per_step": steps[0].total,
        "training_flops": total,
    }


def _batch(model: Model, images: int) -> tuple[Tensor, Tensor]:
    side = model.classifier.backbone.image_size
    images_BCHW = torch.zeros(images, 3, side, side, dtype=torch.uint8)
    return images_BCHW, torch.zeros(images, dtype=torch.int64)
