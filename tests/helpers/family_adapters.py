"""Adapters of one small model of each family, saved without a training."""

from pathlib import Path

import torch
from torch import Tensor

from so_clip import adapters
from so_clip.adapters.about import About, Base, LowRank
from so_clip.adapters.before import Before, added_tensors
from so_clip.adapters.file import SavedAdapter, saved_adapter
from so_clip.adapters.of_run import is_weights_only, options_of
from so_clip.build import assemble_model
from so_clip.clip.prompts import templated
from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.config.settings import Settings
from so_clip.methods.model import Model
from tests.helpers.battery_parts import NAMES
from tests.helpers.small_families import FAMILIES, small_backbone, small_images


def settings_of(method: str, overrides: tuple[str, ...] = ()) -> Settings:
    return from_config(compose([f"method={method}", *overrides]))


def model_of(family: str, method: str, overrides: tuple[str, ...] = ()) -> Model:
    settings = settings_of(method, overrides)
    return assemble_model(settings, small_backbone(family), templated(NAMES, ["a {}"]))


def logits_of(model: Model) -> Tensor:
    model.classifier.forget_classes()
    with torch.no_grad():
        return model.classifier(small_images(model.classifier.backbone, 3))


def saved(
    model: Model, family: str, method: str, overrides: tuple[str, ...], path: Path
) -> SavedAdapter:
    """Move what the method trains, and save it as a run does."""
    base_sha256 = small_backbone(family).weights_sha256
    classifier, adapter = model.classifier, model.adapter
    assert adapter is not None
    before = Before(model)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in model.parameters.values():
            value.add_(torch.randn(value.shape, generator=draw), alpha=0.2)
    adapter.finish(classifier)
    changes, _ = before.changes()
    added, updates = added_tensors(model), adapter.low_rank_updates(classifier)
    state = classifier.backbone.model.state_dict()
    about = About(
        base=Base(
            architecture=FAMILIES[family].architecture,
            weights_sha256=base_sha256,
            logit_scale=100.0,
        ),
        class_names=NAMES,
        templates=classifier.templates,
        method=method,
        settings=options_of(settings_of(method, overrides)),
        weights_only=is_weights_only(model, added, updates),
        low_rank=tuple(
            LowRank(**vars(update), shape=tuple(state[update.tensor].shape)) for update in updates
        ),
    )
    adapters.save(saved_adapter(about, changes, added), path)
    return adapters.load(path)
