"""From settings and data to the objects of a run: model, optimizer, batches."""

from collections.abc import Callable
from typing import Any

import torch

from so_clip.clip.backbone import Backbone
from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.half_weights import NAME as HALF_WEIGHTS
from so_clip.clip.load import load_backbone
from so_clip.clip.loading.architecture_names import is_image_only
from so_clip.clip.pixels import preprocessing_of, unusual_pixels
from so_clip.clip.prompts import Prompts, chosen_prompts
from so_clip.config.resolve import resolved_text_budget
from so_clip.config.settings import BackboneChoice, Component, MethodChoice, Settings
from so_clip.data.batches import TrainBatches
from so_clip.data.cards.card import load_card
from so_clip.data.choice import DataChoice
from so_clip.data.find import user_dataset
from so_clip.data.image_memory import training_images
from so_clip.data.run_data import Data
from so_clip.errors import InputError
from so_clip.fingerprint import Base
from so_clip.methods.adapter import Adapter
from so_clip.methods.construct import (
    constructor_of,
    has_option,
    make_adapter,
    of_type,
    refuse_foreign_options,
)
from so_clip.methods.model import Model
from so_clip.optim.sampled import sampled_gradients
from so_clip.optim.so import SO
from so_clip.runtime.device import pick_device
from so_clip.runtime.precision import Precision

CPU = torch.device("cpu")


def build_model(settings: Settings, data: Data, backbone: Backbone | None = None) -> Model:
    """Turn a loaded backbone, or the one that is loaded here, into the model of the settings."""
    check_classes(settings.method, settings.data)
    check_text(settings)
    backbone = backbone or load(settings.backbone, settings.data.seed)
    prompts = chosen_prompts(settings.data.template, data.splits.class_names, data.card)
    device = pick_device(settings.placement.device)
    return assemble_model(settings, backbone, prompts, device, backbone.weights_sha256)


def load(choice: BackboneChoice, seed: int, weightless: bool = False) -> Backbone:
    """Return the backbone of a choice; see load_backbone."""
    return load_backbone(
        architecture=choice.architecture,
        pretrained=choice.pretrained,
        checkpoint=choice.checkpoint,
        logit_scale=choice.logit_scale,
        seed=seed,
        weightless=weightless,
        preprocessing=choice.preprocessing,
    )


def base_of(choice: BackboneChoice, backbone: Backbone, weights_sha256: str) -> Base:
    """Return what fingerprints hold of a backbone as loaded, with the SHA-256 of its weights."""
    pixels = unusual_pixels(preprocessing_of(backbone), choice.architecture)
    return Base(weights_sha256, pixels, backbone.logit_scale)


def check_classes(method: MethodChoice, choice: DataChoice) -> None:
    """Refuse, before any work, to test a method on classes that it cannot predict.

    Raises:
        InputError: the trained weights belong to the training classes, and others are to be tested.
    """
    adapter = make_adapter(method.adapter) if method.adapter else None
    if adapter is None or not adapter.class_bound:
        return
    bound = f"what method={method.name} trains belongs to the classes of its training images"
    if choice.base_to_new:
        raise InputError(
            f"protocol=base_to_new: {bound}, and cannot predict new ones. Leave protocol out, or "
            "take another method."
        )
    for name in choice.transfer:
        is_users = user_dataset(name, choice.data_root) is not None
        if is_users or load_card(name, choice.cards_dir).classes_of != choice.dataset:
            raise InputError(
                f"transfer={name}: {bound}, and {name} has others. Leave it out, or take another "
                "method."
            )


def check_text(settings: Settings, backbone: Backbone | None = None) -> None:
    """Refuse, before any work, a method whose classes come from text on a backbone without text.

    Args:
        settings: of the run.
        backbone: as loaded; None: the name of the architecture decides.

    Raises:
        InputError: the method needs a text tower and there is none.
    """
    method, architecture = settings.method, settings.backbone.architecture
    has_text = not is_image_only(architecture) if backbone is None else backbone.has_text
    whose = f"method={method.name}: its classes come from text, and the backbone {architecture}"
    if backbone is not None:  # the same text for all methods, which `backbones NAME` shows once
        whose = f"the classes of the method come from text, and {backbone.description}"
    if has_text or (method.adapter is not None and not make_adapter(method.adapter).needs_text):
        return
    raise InputError(
        f"{whose} has no text tower. Use method=prototypes or method=linear_probe, or a CLIP such "
        "as backbone=vit_b16."
    )


def assemble_model(
    settings: Settings,
    backbone: Backbone,
    prompts: Prompts,
    device: torch.device = CPU,
    weights_sha256: str = "",
    check: Callable[[Adapter, Classifier], None] | None = None,
) -> Model:
    """Tokenise the class prompts, move to the device, and let the adapter open its parameters.

    Args:
        settings: of the run.
        backbone: as loaded.
        prompts: of the classes to train on.
        device: of the model.
        weights_sha256: of the backbone.
        check: of the adapter's files; None: the adapter's own.

    Raises:
        InputError: the adapter opens parameters and there is no optimizer, or cannot have the
            precision.
    """
    placement, adapter_choice = settings.placement, settings.method.adapter
    check_text(settings, backbone)
    backbone.memory = placement.memory
    classifier = Classifier(
        backbone,
        backbone.prompt_tokens(prompts.texts),
        resolved_text_budget(placement.text_budget_mib, placement.memory, device.type == "cuda"),
        prompts_per_class=prompts.per_class,
        templates=prompts.templates,
    )
    if device.type != "cpu":  # a forecast's fake tensors are on the CPU and cannot move
        classifier = classifier.to(device)
    adapter = make_adapter(adapter_choice) if adapter_choice else None
    base_names = frozenset(classifier.state_dict())
    if adapter and check:
        check(adapter, classifier)
    elif adapter:
        adapter.check(classifier, weights_sha256)
    parameters = adapter(classifier) if adapter else {}
    if parameters and not settings.trains:
        raise InputError(
            f"optimizer=none, but the adapter opens {len(parameters)} tensors to train. Choose an "
            "optimizer, or method=zero_shot to train nothing."
        )
    precision = Precision(placement.precision, device)
    if precision.name == HALF_WEIGHTS:
        _check_half_weights(adapter, settings.method.name)
        backbone.use_half_weights()
    return Model(classifier, adapter, parameters, device, precision, weights_sha256, base_names)


def _check_half_weights(adapter: Adapter | None, method: str) -> None:
    """Refuse float16 weights for a method that computes with float32 ones."""
    if adapter is not None and not adapter.half_weights:
        raise InputError(
            f"precision={HALF_WEIGHTS}: method={method} computes with float32 weights. The option "
            "is for clip_lora, zero_shot, and methods that train CLIP's own weights, such as so "
            "and adamw. Use precision=fp16."
        )


def build_optimizer(
    choice: Component | None, model: Model, on_gpu: bool | None = None
) -> torch.optim.Optimizer:
    """Make the optimizer over the adapter's parameters. Its own errors become InputError.

    The option `sampled_gradients` changes the model's layers and never reaches the constructor. An
    optimizer with the option `density_ratio` has the parameters of `model.dense` in a group of
    their own, where it is 1. Other optimizers have one group: GaLore projects the matrices of
    `model.dense`, too.

    Args:
        choice: the optimizer and its options.
        model: with its parameters opened.
        on_gpu: whether to arrange weights and gradients as on a GPU; None: if the model is on one.
    """
    assert choice is not None
    if not model.parameters:
        raise InputError(
            "the adapter opens no parameters, so the optimizer has nothing to train. "
            "Choose adapter=weights, or method=zero_shot to train nothing."
        )
    options = dict(choice.options)
    if options.get("capturable") and model.device.type == "cpu":
        raise InputError(
            "optimizer.capturable=true: works on GPUs only, and the device is cpu. Leave it out."
        )
    sampled = options.pop("sampled_gradients", False)
    constructor = constructor_of("optimizer", choice.target)
    refuse_foreign_options("optimizer", constructor, options)
    try:
        made = constructor(_groups(model, constructor), **options)
        optimizer = of_type(torch.optim.Optimizer, made, "optimizer", choice)
        on_gpu = model.device.type == "cuda" if on_gpu is None else on_gpu
        fast = on_gpu and model.classifier.backbone.memory == "fast"
        if on_gpu and isinstance(optimizer, SO):
            optimizer.pack(model.precision.half if sampled and fast else None)
        if sampled:
            # float32 products have no tensor cores: gathering columns is faster there.
            whole = True if on_gpu and model.precision.half is not None else None
            always = sampled is True
            sampled_gradients(model.classifier, optimizer, always=always, whole=whole)
    except (TypeError, ValueError) as error:
        raise InputError(f"optimizer: {error}") from error
    return optimizer


def _groups(model: Model, constructor: Callable[..., Any]) -> list[Any]:
    """Return the parameters of a model, in the groups that `build_optimizer` describes."""
    assert model.dense <= model.parameters.keys()
    if not model.dense or not has_option(constructor, "density_ratio"):
        return [*model.parameters.values()]
    named = model.parameters.items()
    dense = [value for name, value in named if name in model.dense]
    sparse = [value for name, value in named if name not in model.dense]
    groups = [{"params": sparse}, {**model.dense_options, "params": dense, "density_ratio": 1}]
    return [group for group in groups if group["params"]]


def few_shot_batches(
    settings: Settings, data: Data, model: Model, progress: bool = True
) -> TrainBatches:
    """Decode the few-shot images into memory if they fit, and set up their crops and order."""
    assert data.few_shot is not None
    examples = data.few_shot.train
    images = training_images(
        data.images,
        examples,
        budget_mib=settings.placement.image_budget_mib,
        workers=settings.evaluation.workers,
        parallel_runs=settings.parallel_runs,
        progress=progress,
    )
    return TrainBatches(
        images,
        [example.label for example in examples],
        settings.schedule.batch_size,
        model.classifier.backbone.image_size,
        torch.Generator().manual_seed(settings.data.seed),
        model.device,
        scale=settings.augment.scale,
        flip=settings.augment.flip,
        drop_last=settings.schedule.drop_last,
        crops=settings.schedule.crops,
    )
