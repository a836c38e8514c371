"""Sizes of models without weights, and the methods that apply to them."""

import open_clip
import pytest
from torch._subclasses.fake_tensor import FakeTensorMode

from so_clip.backbones.methods import refusals, settings_of
from so_clip.backbones.models import built, groups, listed, local_config, sized
from so_clip.backbones.role_table import model_map
from so_clip.backbones.without_weights import (
    backbone_without_weights,
    bare_model,
    copy_without_weights,
)
from so_clip.clip.classifier import Classifier
from so_clip.clip.towers import TOWERS, named_blocks
from so_clip.errors import InputError
from so_clip.methods.construct import make_adapter
from tests.helpers.small_families import small_backbone

# One method of each adapter that chooses its tensors in another way.
METHODS = ("so", "lora", "clip_lora", "two_stage", "coop")


def quiet(text: str) -> None:
    pass


def without_weights(name: str, cut: bool):
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    return backbone_without_weights(name, local_config(name), mode, cut=cut), mode


def test_sizes_are_those_of_the_published_models():
    """open_clip's documentation has these numbers of weights, without the scale of the logits."""
    names = ["RN50", "ViT-B-32", "roberta-ViT-B-32"]
    (resnet, vit, roberta) = listed_sizes(names)
    assert (vit.vision.weights + vit.text.weights, vit.vision.weights) == (151277312, 87849216)
    assert (vit.vision.blocks, vit.vision.width, vit.text.blocks, vit.text.width) == (
        *(12, 768),
        *(12, 512),
    )
    assert (vit.image_size, vit.context_length, vit.dimensions) == (224, 77, 512)
    assert vit.groups == []
    assert "openai" in vit.published
    assert resnet.vision.weights + resnet.text.weights == 102007136
    assert (resnet.vision.blocks, resnet.vision.width) == (16, 2048)
    assert roberta.hub_files == ["roberta-base"]
    assert roberta.vision.weights == vit.vision.weights


def listed_sizes(names):
    """Return the models without a trial of the methods."""
    configs = {name: local_config(name) for name in names}
    return [sized(name, config, built(config)) for name, config in configs.items()]


def test_the_cut_model_keeps_a_block_of_each_kind():
    whole, _ = without_weights("RN50", cut=False)
    cut, _ = without_weights("RN50", cut=True)
    for tower, expected in zip(TOWERS, (8, 1), strict=True):
        assert len(named_blocks(cut.model, tower)) == expected
        assert len(named_blocks(whole.model, tower)) == {"vision": 16, "text": 12}[tower]


def test_a_copy_shares_tensors_and_no_modules():
    backbone, mode = without_weights("ViT-B-32", cut=True)
    with mode:
        copied = copy_without_weights(backbone)
    for (name, value), (_, same) in zip(
        backbone.named_parameters(), copied.named_parameters(), strict=True
    ):
        assert value is same, name
    assert not {*map(id, backbone.modules())} & {*map(id, copied.modules())}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "architecture"),
    [
        ("siglip", "ViT-B-16-SigLIP"),
        ("convnext", "convnext_tiny"),
        ("resnet", "RN50"),
        ("vitamin", "ViTamin-S"),
        ("fastvit_s0", "MobileCLIP2-S0"),
        ("swin", "swin_base_patch4_window7_224"),
    ],
)
def test_the_methods_are_those_that_open_parameters_on_a_real_model(family, architecture):
    """The oracle: the adapters on a small model of the family, with weights."""
    refused = set()
    for method in METHODS:
        backbone = small_backbone(family)
        classifier = Classifier(backbone, backbone.tokenize(["a photo of a cat.", "a dog."]))
        try:
            assert make_adapter(settings_of(method).method.adapter)(classifier)
        except InputError:
            refused.add(method)
    backbone, mode = without_weights(architecture, cut=True)
    assert {*refusals(backbone, mode, METHODS)} == refused


def test_a_refusal_has_the_reason_and_the_way_out():
    backbone, mode = without_weights("RN50", cut=True)
    # SMAT's file is missing here, and that does not decide what applies to a model.
    refused = refusals(backbone, mode, ["clip_lora", "so", "smat"])
    assert [*refused] == ["clip_lora"]
    assert "adapter.encoder=" in refused["clip_lora"]


@pytest.mark.slow
def test_a_trial_changes_no_later_trial():
    backbone, mode = without_weights("ViT-B-32", cut=True)
    assert refusals(backbone, mode, ["lora", "clip_lora", "lora", "so"], step=True) == {}
    assert not any(value.requires_grad for value in backbone.parameters())
    assert "lora" not in " ".join(dict(backbone.named_parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["ViT-B-32", "ViT-B-16-SigLIP", "convnext_tiny", "RN50"])
def test_the_cut_model_takes_the_methods_of_the_whole_model(architecture):
    cut, cut_mode = without_weights(architecture, cut=True)
    whole, mode = without_weights(architecture, cut=False)
    assert refusals(cut, cut_mode) == refusals(whole, mode)


@pytest.mark.slow
def test_all_models_are_listed_and_one_of_each_structure_is_examined():
    names = open_clip.list_models()
    models = list(listed(names, quiet))
    assert [model.architecture for model in models] == names
    assert [model for model in models if model.text is None] == [
        model for model in models if model.refused is None
    ]
    of_open_clip = {
        name for name, values in groups().items() if not values["architecture"].startswith("timm:")
    }
    assert {group for model in models for group in model.groups} == of_open_clip - {"tiny"}


@pytest.mark.slow
def test_the_map_counts_each_parameter():
    found = model_map("ViT-B-32-quickgelu", quiet)
    vision = {row.role: row for row in found.towers["vision"].roles}
    assert vision["attention_in"].shapes == [([2304, 768], 12)]
    assert vision["mlp_out"].weights == 12 * 768 * 3072
    assert found.published["openai"].resize_mode == "shortest"
    assert found.groups == ["vit_b32"]
    assert "so" in found.applies
    meta = bare_model(local_config("ViT-B-32-quickgelu"))
    total = sum(value.numel() for value in meta.parameters())
    assert sum(tower.size.weights for tower in found.towers.values()) == total - 1
