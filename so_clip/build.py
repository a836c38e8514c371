"""From settings and data to the parts of a run: model, optimizer, batches, evaluator."""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from so_clip.adapt.model import Model
from so_clip.clip.backbone import Backbone, load_backbone
from so_clip.clip.blocks import Memory
from so_clip.clip.classifier import Classifier
from so_clip.clip.prompts import Prompts, described, templated
from so_clip.config.resolve import with_text_budget
from so_clip.config.settings import TEMPLATES, Evaluation, Settings
from so_clip.data.base_to_new import BASE_TO_NEW
from so_clip.data.batches import TestStream, TrainBatches
from so_clip.data.cache.decode_cache import GIB, DecodeCache
from so_clip.data.cards.card import load_card
from so_clip.data.find import user_dataset
from so_clip.data.image_memory import training_images
from so_clip.data.images import DigitArray
from so_clip.data.run_data import NEW_CLASSES, Data, TestSet
from so_clip.errors import InputError, nearest
from so_clip.evaluate.evaluator import Classes, Evaluator
from so_clip.evaluate.feature_cache import FeatureCache
from so_clip.optim.sampled import sampled_gradients
from so_clip.runtime.device import pick_device
from so_clip.runtime.precision import Precision

# An evaluator's contexts for the classes that the classifier has anyway.
_ITS_OWN: tuple[Classes, Classes] = (nullcontext, nullcontext)


def build_model(settings: Settings, data: Data) -> Model:
    """Load the backbone, and make it the model that the settings describe."""
    check_classes(settings)
    device = pick_device(settings.device)
    backbone = load_backbone(**settings.backbone, seed=settings.seed)
    weights_sha256 = backbone.weights_sha256
    names, card = data.splits.class_names, data.card
    made_of = names, card.template_sets, device, weights_sha256, card.descriptions
    return assemble_model(settings, backbone, *made_of)


def check_classes(settings: Settings) -> None:
    """Refuse, before any work, to test on classes that what is trained says nothing of."""
    adapter = _instantiate("adapter", settings.adapter) if settings.adapter else None
    if adapter is None or not adapter.class_bound:
        return
    bound = f"what method={settings.method} trains belongs to the classes of its training images"
    if settings.protocol == BASE_TO_NEW:
        raise InputError(
            f"protocol=base_to_new: {bound}, and says nothing of new ones. Leave protocol out, or "
            "take another method."
        )
    for name in settings.transfer:
        other = user_dataset(name, settings.data_root) is not None
        if other or load_card(name).classes_of != settings.dataset:
            raise InputError(
                f"transfer={name}: {bound}, and {name} has others. Leave it out, or take another "
                "method."
            )


def assemble_model(
    settings: Settings,
    backbone: Backbone,
    class_names: Sequence[str],
    templates: Mapping[str, Sequence[str]],
    device: torch.device,
    weights_sha256: str,
    descriptions: Mapping[str, Sequence[str]] | None = None,
) -> Model:
    """Tokenise the class prompts, move to the device, and let the adapter open its parameters."""
    prompts = _prompts(settings.template, class_names, templates, descriptions)
    tokens_PL = backbone.tokenize(prompts.texts)
    backbone.memory = cast(Memory, settings.memory)
    classifier = Classifier(
        backbone,
        tokens_PL,
        with_text_budget(settings, on_cuda=device.type == "cuda").text_budget_mib,
        prompts_per_class=prompts.per_class,
        templates=prompts.templates,
    )
    if device.type != "cpu":  # where it is already, and where fake tensors are, which cannot move
        classifier = classifier.to(device)
    adapter = _instantiate("adapter", settings.adapter) if settings.adapter else None
    parameters = adapter(classifier) if adapter else {}
    if parameters and not settings.trains:
        raise InputError(
            f"optimizer=none, but the adapter opens {len(parameters)} tensors to train. Choose an "
            "optimizer, or method=zero_shot to train nothing."
        )
    precision = Precision(settings.precision, device)
    return Model(classifier, adapter, parameters, device, precision, weights_sha256)


def _prompts(
    template: str,
    class_names: Sequence[str],
    templates: Mapping[str, Sequence[str]],
    descriptions: Mapping[str, Sequence[str]] | None,
) -> Prompts:
    """Return the prompts of classes, from a user's descriptions of them if there are any."""
    if descriptions is not None:
        return described(class_names, descriptions)
    return templated(class_names, _templates(template, templates))


def _templates(name: str, templates: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """Return the templates that `name` means: the card's of that name, or itself."""
    if name not in TEMPLATES and name not in templates:
        return [name]
    if name not in templates:
        raise InputError(
            f"template={name}: the dataset's card has none under templates. It has "
            f"{', '.join(templates)}; any text with one {{}} for the class name will do too."
        )
    return templates[name]


def build_optimizer(settings: Settings, model: Model) -> torch.optim.Optimizer:
    """Make the optimizer over the adapter's parameters; its own refusals become InputError.

    Its option `sampled_gradients` is the model's to obey: it never reaches the constructor.
    """
    assert settings.optimizer is not None
    if not model.parameters:
        raise InputError(
            "the adapter opens no parameters, so the optimizer has nothing to train. "
            "Choose adapter=weights, or method=zero_shot to train nothing."
        )
    options = dict(settings.optimizer)
    if options.get("capturable") and model.device.type == "cpu":
        raise InputError(
            f"optimizer.capturable=true: is for GPUs, and device={settings.device} is none. "
            "Leave it out."
        )
    sampled = options.pop("sampled_gradients", False)
    make = _instantiate("optimizer", options)
    _refuse_foreign_options(make)
    try:
        optimizer = make(list(model.parameters.values()))
        if sampled:
            sampled_gradients(model.classifier, optimizer, always=sampled is True)
    except (TypeError, ValueError) as error:
        raise InputError(f"optimizer: {error}") from error
    return optimizer


def _refuse_foreign_options(make: partial[torch.optim.Optimizer]) -> None:
    """Name options that belong to another optimizer, as an experiment may have set them."""
    takes = inspect.signature(make.func).parameters
    for key, value in make.keywords.items():
        if key not in takes:
            raise InputError(
                f"optimizer.{key}={value}: {make.func.__name__} has no such option. Leave it out, "
                f"or drop it with '~optimizer.{key}' where an experiment sets it."
                f"{nearest(key, takes)}"
            )


def few_shot_batches(settings: Settings, data: Data, model: Model) -> TrainBatches:
    """Decode the few shots into memory, if they fit, and set up their crops and order."""
    assert data.few_shot is not None
    examples = data.few_shot.train
    return TrainBatches(
        training_images(
            data.images,
            examples,
            settings.image_budget_mib,
            settings.evaluation.workers,
            settings.at_once,
        ),
        [example.label for example in examples],
        settings.schedule.batch_size,
        model.classifier.backbone.image_size,
        torch.Generator().manual_seed(settings.seed),
        model.device,
        scale=settings.augment.scale,
        flip=settings.augment.flip,
    )


def build_evaluators(settings: Settings, data: Data, model: Model) -> dict[str, Evaluator]:
    """Set up what classifies each of the run's test sets, by its name.

    Raises:
        InputError: the prompts of other classes are not what the adapter can take.
    """
    return {test_set.name: _evaluator(settings, test_set, model) for test_set in data.test_sets}


def _evaluator(settings: Settings, test_set: TestSet, model: Model) -> Evaluator:
    options = settings.evaluation
    classes, adapted_classes = _ITS_OWN
    if test_set.name and test_set.columns is None:
        try:
            classes, adapted_classes = _other_classes(settings, test_set, model)
        except InputError as error:
            new = test_set.name == NEW_CLASSES
            option = f"protocol={BASE_TO_NEW}" if new else f"transfer={test_set.name}"
            raise InputError(f"{option}: {error}") from error
    return Evaluator(
        model.classifier,
        model.weights_sha256,
        TestStream(
            test_set.images,
            test_set.splits.test,
            model.classifier.backbone.image_size,
            options.batch_size,
            options.workers,
            pin=model.device.type == "cuda",
            cache=_decode_cache(options, test_set, model),
        ),
        model.device,
        Precision(settings.evaluation_precision, model.device),
        FeatureCache(options.cache_dir) if options.cache_dir else None,
        classes,
        adapted_classes,
        test_set.columns,
    )


def _decode_cache(options: Evaluation, test_set: TestSet, model: Model) -> DecodeCache | None:
    """Return where test images are kept decoded: files that an image tower will see again.

    Of a tower that nothing trains, the features are kept instead.
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


def _other_classes(settings: Settings, test_set: TestSet, model: Model) -> tuple[Classes, Classes]:
    """Return contexts in which the classifier has a test set's classes: before and after."""
    names, card = test_set.splits.class_names, test_set.card
    prompts = _prompts(settings.template, names, card.template_sets, card.descriptions)
    classifier, adapter = model.classifier, model.adapter
    tokens_PL = classifier.backbone.tokenize(prompts.texts)
    how = tokens_PL, prompts.templates
    plain = partial(classifier.using_classes, *how, prompts_per_class=prompts.per_class)
    if adapter is None:
        return plain, plain
    with plain():
        adapter.prompts_for(classifier, tokens_PL)  # refuses now what would fail after training
    return plain, partial(plain, rewrite=adapter.prompts_for)


def _instantiate(group: str, spec: Mapping[str, Any]) -> Any:
    try:
        return instantiate(spec, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, InputError):
            raise cause from None
        raise InputError(f"{group}: {cause or error}") from error
