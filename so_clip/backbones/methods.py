"""The methods that apply to a backbone: the code of each runs on a model without weights."""

import json
import warnings
from collections.abc import Iterable
from functools import cache, partial

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from so_clip.backbones.without_weights import copy_without_weights
from so_clip.build import build_optimizer
from so_clip.clip.backbone import Backbone
from so_clip.config.compose import choices, compose
from so_clip.config.early_checks import check_packages
from so_clip.config.parse import from_config
from so_clip.config.sentence_settings import HEAD
from so_clip.config.settings import Settings
from so_clip.data.cards.card import DatasetCard, load_card
from so_clip.errors import InputError, reason_of
from so_clip.forecast.predict import fake_model
from so_clip.methods.model import Model
from so_clip.train import train_step

# Its card is part of the program, and all options of a method have values for it.
_DATASET = "digits"
_IMAGES = 2  # in the batch of a training step


def method_names() -> list[str]:
    """Return the names of all methods in conf/ except the one for sentences only."""
    return [file.stem for file in choices("method") if file.stem != HEAD]


@cache
def settings_of(method: str) -> Settings:
    """Return the settings of a run of one image per class with a method."""
    overrides = [f"method={method}", f"dataset={_DATASET}", "shots=1", "device=cpu"]
    return from_config(compose([*overrides, "precision=fp32"]))


def refusals(
    backbone: Backbone,
    mode: FakeTensorMode,
    methods: Iterable[str] | None = None,
    step: bool = False,
) -> dict[str, str]:
    """Return why methods do not apply to a backbone, by their names. The others apply.

    Args:
        backbone: without weights; see `backbone_without_weights`. It does not change.
        mode: of its fake tensors.
        methods: names of methods; None: all.
        step: take a training step, too.
    """
    card, models = load_card(_DATASET), dict[str, Model]()
    found = {}
    for name in method_names() if methods is None else methods:
        reason = _refusal(settings_of(name), card, backbone, mode, {} if step else models, step)
        if reason is not None:
            found[name] = reason
    return found


def _refusal(
    settings: Settings,
    card: DatasetCard,
    backbone: Backbone,
    mode: FakeTensorMode,
    models: dict[str, Model],
    step: bool,
) -> str | None:
    """Return why a run with these settings would be refused; None if it would train.

    `models` has the model of each adapter that was tried, for other optimizers.
    """
    adapter = settings.method.adapter
    parts = [adapter and (adapter.target, adapter.record()), settings.trains]
    choice = json.dumps([*parts, settings.data.template], sort_keys=True)
    try:
        check_packages(settings.method)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as CoOp's on a short context
            if choice not in models:
                with mode:
                    copied = copy_without_weights(backbone)
                models[choice] = fake_model(settings, card, mode, copied, without_files=True)
            model = models[choice]
            for parameter in model.parameters.values():
                parameter.requires_grad_(True)
            if settings.trains:
                with mode:
                    _optimize(settings, model, step)
    except InputError as error:
        return str(error)
    except (DataDependentOutputException, DynamicOutputShapeException):
        return None  # the step chooses entries by their values
    except Exception as error:
        return f"fails: {type(error).__name__}: {reason_of(error)}"
    finally:
        backbone.requires_grad_(False)  # the copy shares its tensors
    return None


def _optimize(settings: Settings, model: Model, step: bool) -> None:
    assert model.adapter is not None
    optimizer = build_optimizer(settings.method.optimizer, model)
    if not step:
        return
    classifier = model.classifier
    side = classifier.backbone.image_size
    train_step(
        classifier,
        torch.zeros(_IMAGES, 3, side, side, dtype=torch.uint8),
        torch.zeros(_IMAGES, dtype=torch.int64),
        optimizer=optimizer,
        precision=model.precision,
        penalty=partial(model.adapter.penalty, classifier),
    )
