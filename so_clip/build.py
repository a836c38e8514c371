"""From settings and data to the objects of a run: model, optimizer, batches, evaluators."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from so_clip.clip.backbone import Backbone
from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.half_weights import NAME as HALF_WEIGHTS
from so_clip.clip.load import load_backbone
from so_clip.clip.loading.architecture_names import is_image_only
from so_clip.clip.pixels import preprocessing_of, unusual_pixels
from so_clip.clip.prompts import Prompts, described, templated
from so_clip.config.resolve import resolved_text_budget
from so_clip.config.settings import BackboneChoice, Component, Evaluation, MethodChoice, Settings
from so_clip.data.base_to_new import BASE_TO_NEW
from so_clip.data.batches import TestStream, TrainBatches
from so_clip.data.cache.decode_cache import GIB, DecodeCache
from so_clip.data.cards.card import DatasetCard, load_card
from so_clip.data.choice import TEMPLATES, DataChoice
from so_clip.data.find import user_dataset
from so_clip.data.image_memory import training_images
from so_clip.data.images import DigitArray
from so_clip.data.run_data import NEW_CLASSES, Data, TestSet
from so_clip.errors import InputError
from so_clip.evaluate.batch_size import batch_size
from so_clip.evaluate.evaluator import Classes, Evaluator
from so_clip.evaluate.feature_cache import FeatureCache
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
# Contexts of an evaluator for the classes that the classifier already has.
_SAME_CLASSES: tuple[Classes, Classes] = (nullcontext, nullcontext)


def build_model(settings: Settings, data: Data, backbone: Backbone | None = None) -> Model:
    """Turn a loaded backbone, or the one that is loaded here, into the model of the settings."""
    check_classes(settings.method, settings.data)
    check_text(settings)
    backbone = backbone or load(settings.backbone, settings.data.seed)
    prompts = class_prompts(settings.data.template, data.splits.class_names, data.card)
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


def class_prompts(template: str, class_names: Sequence[str], card: DatasetCard) -> Prompts:
    """Return the prompts of classes: the user's descriptions of them, or filled templates.

    Raises:
        InputError: the card has no templates of that name.
    """
    if card.descriptions is not None:
        return described(class_names, card.descriptions)
    templates = card.template_sets
    if template in templates:
        return templated(class_names, templates[template])
    if template in TEMPLATES:
        raise InputError(
            f"template={template}: the dataset's card has none under templates. It has "
            f"{', '.join(templates)}; any text with one {{}} for the class name works too."
        )
    return templated(class_names, [template])


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


def build_evaluators(settings: Settings, data: Data, model: Model) -> dict[str, Evaluator]:
    """Return an evaluator for each of the run's test sets, by its name.

    Raises:
        InputError: the adapter cannot take the prompts of other classes.
    """
    return {
        test_set.name: build_evaluator(settings, test_set, model, has_other_classes(test_set))
        for test_set in data.test_sets
    }


def has_other_classes(test_set: TestSet) -> bool:
    """Return whether the text tower must embed the class names of a run's test set."""
    return bool(test_set.name) and test_set.columns is None


def build_validation_evaluator(settings: Settings, data: Data, model: Model) -> Evaluator | None:
    """Return an evaluator for the drawn validation images; None if the draw has none.

    It has no cache: another draw has other images, and there are few of them.
    """
    if data.few_shot is None or not data.few_shot.val:
        return None
    splits = replace(data.splits, test=data.few_shot.val)
    test_set = TestSet("", data.card, splits, data.images)
    evaluator = build_evaluator(settings, test_set, model, other_classes=False)
    evaluator.cache = evaluator.stream.cache = None
    return evaluator


def build_evaluator(
    settings: Settings, test_set: TestSet, model: Model, other_classes: bool
) -> Evaluator:
    """Return an evaluator for a test set.

    Args:
        settings, test_set, model: of the run.
        other_classes: whether the test set has other classes or prompts than the classifier.

    Raises:
        InputError: the adapter cannot take the prompts of other classes.
    """
    options = settings.evaluation
    precision = Precision(settings.evaluation_precision, model.device)
    classes, adapted_classes = _SAME_CLASSES
    if other_classes:
        try:
            classes, adapted_classes = _other_classes(settings.data.template, test_set, model)
        except InputError as error:
            is_new = test_set.name == NEW_CLASSES
            option = f"protocol={BASE_TO_NEW}" if is_new else f"transfer={test_set.name}"
            option = option if test_set.name else f"dataset={settings.data.dataset}"
            raise InputError(f"{option}: {error}") from error
    return Evaluator(
        model.classifier,
        model.weights_sha256,
        TestStream(
            test_set.images,
            test_set.splits.test,
            model.classifier.backbone.pixels,
            batch_size(options.batch_size, model.classifier, precision, model.device),
            options.workers,
            pin=model.device.type == "cuda",
            cache=_decode_cache(options, test_set, model),
        ),
        model.device,
        precision,
        FeatureCache(options.cache_dir) if options.cache_dir else None,
        classes,
        adapted_classes,
        test_set.columns,
    )


def _decode_cache(options: Evaluation, test_set: TestSet, model: Model) -> DecodeCache | None:
    """Return the cache of decoded test images, if the image tower trains and images are files.

    A frozen image tower encodes each image once, so its features are kept instead.
    """
    budget_bytes = int(options.decode_cache_gib * GIB)
    if (
        not budget_bytes
        or options.cache_dir is None
        or isinstance(test_set.images, DigitArray)
        or not model.classifier.trains("vision")
    ):
        return None
    return DecodeCache(options.cache_dir / "decoded", budget_bytes)


def _other_classes(template: str, test_set: TestSet, model: Model) -> tuple[Classes, Classes]:
    """Return contexts in which the classifier has a test set's classes: before and after."""
    prompts = class_prompts(template, test_set.splits.class_names, test_set.card)
    classifier, adapter = model.classifier, model.adapter
    tokens_PL = classifier.backbone.prompt_tokens(prompts.texts)
    plain = partial(
        classifier.using_classes,
        tokens_PL,
        prompts.templates,
        prompts_per_class=prompts.per_class,
    )
    if adapter is None:
        return plain, plain
    with plain():
        adapter.prompts_for(classifier, tokens_PL)  # refuses now what would fail after training
    return plain, partial(plain, rewrite=adapter.prompts_for)
