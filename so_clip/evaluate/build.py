"""From settings and a test set to its evaluator."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

from so_clip.clip.prompts import chosen_prompts
from so_clip.config.settings import Evaluation, Settings
from so_clip.data.base_to_new import BASE_TO_NEW
from so_clip.data.batches import TestStream
from so_clip.data.cache.decode_cache import GIB, DecodeCache
from so_clip.data.images import DigitArray
from so_clip.data.run_data import NEW_CLASSES, Data, TestSet
from so_clip.errors import InputError
from so_clip.evaluate.batch_size import batch_size
from so_clip.evaluate.evaluator import Classes, Evaluator
from so_clip.evaluate.feature_cache import FeatureCache
from so_clip.methods.model import Model
from so_clip.runtime.precision import Precision

# Contexts of an evaluator for the classes that the classifier already has.
_SAME_CLASSES: tuple[Classes, Classes] = (nullcontext, nullcontext)


def build_evaluators(settings: Settings, data: Data, model: Model) -> dict[str, Evaluator]:
    """Return an evaluator for each of the run's test sets, by its name.

    Raises:
        InputError: the adapter cannot take the prompts of other classes.
    """
    evaluators = {}
    for test_set in data.test_sets:
        other_classes = bool(test_set.name) and test_set.columns is None
        evaluators[test_set.name] = build_evaluator(settings, test_set, model, other_classes)
    return evaluators


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
    prompts = chosen_prompts(template, test_set.splits.class_names, test_set.card)
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
