"""Adapter files of several families: the names in them are those of open_clip's own model."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
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
from tests.helpers.small_families import small_backbone, small_images, small_model

SPLIT = "adapter.split_qkv=true"
CASES = [
    ("eva01", "clip_lora", ()),
    ("coca", "bitfit", ()),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            ("eva02_b", "clip_lora", ("adapter.dropout=0",)),
            ("bert", "clip_lora", ()),
            ("siglip", "lora", (SPLIT,)),
            ("swin", "lora", (SPLIT, "adapter.interpolation=0.5")),
        )
    ),
]


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
    model: Model, method: str, overrides: tuple[str, ...], base_sha256: str, path: Path
) -> SavedAdapter:
    """Move what the method trains, and save it as a run does."""
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
        base=Base(architecture="small", weights_sha256=base_sha256, logit_scale=100.0),
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


@pytest.mark.parametrize(("family", "method", "overrides"), CASES)
def test_a_file_gives_the_logits_to_a_classifier_and_to_a_bare_model(
    family: str, method: str, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    trained = model_of(family, method, overrides)
    base_sha256 = model_of(family, "zero_shot").classifier.backbone.weights_sha256
    adapter = saved(trained, method, overrides, base_sha256, tmp_path / "adapter.safetensors")
    assert adapter.about.weights_only
    expected_BK = logits_of(trained)

    fresh = model_of(family, "zero_shot")
    zero_shot_BK = logits_of(fresh)
    assert (expected_BK - zero_shot_BK).abs().max() > 0.1
    adapters.apply(fresh.classifier, adapter)
    assert torch.equal(logits_of(fresh), expected_BK)
    adapters.remove(fresh.classifier)
    assert torch.equal(logits_of(fresh), zero_shot_BK)
    assert fresh.classifier.backbone.weights_sha256 == base_sha256

    bare, backbone = small_model(family), fresh.classifier.backbone
    adapters.apply(bare, adapter)
    pixels_BCHW = small_images(backbone, 3) / 255
    pixels_BCHW = (pixels_BCHW - backbone.mean) / backbone.std
    with torch.no_grad():
        image_BD = F.normalize(bare.encode_image(pixels_BCHW), dim=-1)
        text_KD = F.normalize(bare.encode_text(fresh.classifier.tokens_PL), dim=-1)
    found_BK = fresh.classifier.backbone.logit_scale * image_BD @ text_KD.T
    torch.testing.assert_close(found_BK, expected_BK, rtol=0, atol=2e-2)
