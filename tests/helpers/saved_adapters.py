"""Adapters of the methods of the battery, saved and read again, and new copies of their base."""

import json
from pathlib import Path
from typing import Any

import open_clip
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from so_clip import adapters
from so_clip.adapters.about import CONTENT_SHA256, KEY, About, Base, LowRank
from so_clip.adapters.before import added_tensors
from so_clip.adapters.file import saved_adapter
from so_clip.adapters.of_run import is_weights_only, options_of
from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.methods.model import Model
from tests.helpers.battery_parts import NAMES, TrainedMethod, model_of
from tests.helpers.small_models import small_clip


def plain_model(family: str = "small_clip") -> Model:
    """Return the battery's model without an adapter."""
    return model_of(from_config(compose(["method=zero_shot"])), family)


def bare_clip() -> open_clip.CLIP:
    """Return the same base as open_clip builds it."""
    return small_clip().requires_grad_(False)


def save_trained(done: TrainedMethod, path: Path) -> adapters.SavedAdapter:
    """Save the adapter of a trained method, and read it."""
    classifier, method = done.model.classifier, done.model.adapter
    assert method is not None
    assert done.changes is not None
    state, updates = classifier.backbone.model.state_dict(), method.low_rank_updates(classifier)
    added = added_tensors(done.model)
    about = About(
        base=Base(
            architecture="small",
            weights_sha256=plain_model(done.family).classifier.backbone.weights_sha256,
            logit_scale=classifier.backbone.logit_scale,
        ),
        class_names=NAMES,
        templates=classifier.templates,
        method=done.settings.method.name,
        settings=options_of(done.settings),
        class_bound=method.class_bound,
        weights_only=is_weights_only(done.model, added, updates),
        low_rank=tuple(
            LowRank(**vars(update), shape=tuple(state[update.tensor].shape)) for update in updates
        ),
    )
    adapters.save(saved_adapter(about, done.changes, added), path)
    return adapters.load(path)


def content(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the metadata of a file, to change and write them without a hash."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = json.loads(file.metadata()[KEY])
    del metadata[CONTENT_SHA256]
    return tensors, metadata


def write(tensors: dict[str, Tensor], metadata: dict[str, Any], path: Path) -> None:
    save_file(tensors, path, {KEY: json.dumps(metadata)})
