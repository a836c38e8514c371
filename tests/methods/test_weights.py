"""Which weights take part: SO's 96 matrices, and what roles, towers and positions leave of them.

Positions are held against CLIP-LoRA's own tables of block indices.
"""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from so_clip.clip.classifier import Classifier
from so_clip.clip.engine.attention import explicit_attention
from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.errors import InputError
from so_clip.methods.weights import POSITIONS, Weights, blocks_at
from tests.helpers.small_models import small_backbone, weightless_backbone

ROLES = list(compose([]).adapter.roles)
TWELVE_BLOCKS = {
    "all": range(12),
    "blocks": range(12),
    "half-bottom": range(6),
    "half-up": range(6, 12),
    "bottom": range(4),
    "mid": range(4, 8),
    "up": range(8, 12),
    "top": range(11, 12),
    "top2": range(10, 12),
    "top3": range(9, 12),
}


def _on_meta(architecture: str) -> Classifier:
    """Build a classifier that has every parameter's name and shape, and no memory."""
    backbone = weightless_backbone(architecture)
    return Classifier(backbone, backbone.tokenize(["a photo of a dog."]))


@pytest.fixture(scope="session")
def vit_b16() -> Classifier:
    return _on_meta("ViT-B-16-quickgelu")


@pytest.fixture
def small() -> Classifier:
    backbone = small_backbone()
    explicit_attention(backbone.model)
    return Classifier(backbone, backbone.tokenize(["a dog", "a cat"]))


def _blocks(selected: dict[str, nn.Parameter], tower: str) -> set[int]:
    names = [name for name in selected if name.startswith("visual.") == (tower == "vision")]
    return {int(re.search(r"resblocks\.(\d+)\.", name)[1]) for name in names}


def test_the_papers_selection_is_96_matrices_of_vit_b16(vit_b16):
    selected = Weights(ROLES)(vit_b16)
    assert len(selected) == 96
    assert sum(value.numel() for value in selected.values()) == 122_683_392
    assert {value.dim() for value in selected.values()} == {2}
    # 12 blocks of 12 width² in each tower, 768 and 512 wide
    assert 12 * 12 * (768**2 + 512**2) == 122_683_392
    opened = {name for name, p in vit_b16.backbone.model.named_parameters() if p.requires_grad}
    assert opened == set(selected)
    for tower in ("vision", "text"):
        assert _blocks(selected, tower) == {*range(12)}
    vit_b16.backbone.requires_grad_(False)


@pytest.mark.parametrize(("encoder", "width"), [("vision", 768), ("text", 512)])
@pytest.mark.parametrize("position", POSITIONS)
def test_one_tower_at_one_position_of_vit_b16(vit_b16, encoder, width, position):
    selected = Weights(ROLES, encoder, position)(vit_b16)
    blocks = {*TWELVE_BLOCKS[position]}
    assert _blocks(selected, encoder) == blocks
    assert len(selected) == 4 * len(blocks)
    assert sum(value.numel() for value in selected.values()) == 12 * width**2 * len(blocks)
    vit_b16.backbone.requires_grad_(False)


def test_positions_follow_each_towers_own_depth():
    vit_l14 = _on_meta("ViT-L-14-quickgelu")
    selected = Weights(ROLES, position="up")(vit_l14)
    assert _blocks(selected, "vision") == {*range(16, 24)}
    assert _blocks(selected, "text") == {*range(8, 12)}


@pytest.mark.parametrize("position", POSITIONS)
def test_twelve_blocks_are_clip_loras_tables(position):
    assert blocks_at(position, 12) == TWELVE_BLOCKS[position]


def test_half_up_of_24_blocks_is_clip_loras_for_vit_l14():
    assert blocks_at("half-up", 24) == range(12, 24)
    assert blocks_at("half-bottom", 24) == range(12)


@given(st.integers(1, 100))
def test_halves_and_thirds_divide_any_depth(depth):
    def joined(*positions: str) -> list[int]:
        return [block for position in positions for block in blocks_at(position, depth)]

    everything = [*range(depth)]
    assert joined("all") == everything
    assert joined("half-bottom", "half-up") == everything
    assert joined("bottom", "mid", "up") == everything
    for position, count in (("top", 1), ("top2", 2), ("top3", 3)):
        assert joined(position) == everything[-count:]
    thirds = [len(blocks_at(position, depth)) for position in ("bottom", "mid", "up")]
    assert max(thirds) - min(thirds) <= 1


def test_parameters_are_the_models_own_and_nothing_else_is_opened(small):
    selected = Weights(["mlp_in"], "vision")(small)
    named = dict(small.backbone.model.named_parameters())
    assert set(selected) == {
        f"visual.transformer.resblocks.{block}.mlp.c_fc.weight" for block in range(2)
    }
    for name, value in named.items():
        assert value.requires_grad == (name in selected)
        assert selected.get(name, value) is value


def test_weights_outside_the_blocks_take_part_with_all_positions_only(small):
    assert set(Weights(["projection"], "vision")(small)) == {"visual.proj"}
    with pytest.raises(InputError, match=r"has the role 'projection'.*position=blocks"):
        Weights(["projection"], position="blocks")(small)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"roles": []}, "adapter.roles=[]: must be a list"),
        ({"roles": "mlp_in"}, "must be a list of roles"),
        ({"roles": [1]}, "1 is no role"),
        ({"roles": ["mlp_inn"]}, "Did you mean 'mlp_in'"),
        ({"roles": ROLES, "position": ["all"]}, "adapter.position=['all']: must be one of"),
        ({"roles": ROLES, "encoder": "image"}, "adapter.encoder=image: must be vision, text"),
        ({"roles": ROLES, "encoder": "visio"}, "Did you mean 'vision'"),
        ({"roles": ROLES, "position": "half_up"}, "Did you mean 'half-up'"),
        ({"roles": ROLES, "position": "middle"}, "must be one of all, blocks, half-bottom"),
    ],
)
def test_bad_options_are_errors(arguments, message):
    with pytest.raises(InputError) as caught:
        Weights(**arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("roles", "encoder", "message"),
    [
        ([*ROLES, "pooling"], "both", "has the role 'pooling' with encoder=both"),
        (["patch_embedding"], "text", "encoder=text"),
        (["patch_embedding"], "both", "the text encoder of the small model has none of them"),
        (["query"], "both", "one matrix here: choose attention_in"),
    ],
)
def test_a_role_that_the_model_does_not_have_is_an_error(small, roles, encoder, message):
    with pytest.raises(InputError) as caught:
        Weights(roles, encoder)(small)
    assert message in str(caught.value)
    opened = [p for p in small.backbone.model.parameters() if p.requires_grad]
    assert opened == [], "an adapter that failed left parameters open"


@pytest.mark.parametrize(("position", "expected"), [("last-1", [3]), ("last-3", [1, 2, 3])])
def test_the_last_so_many_blocks(position, expected):
    assert [*blocks_at(position, 4)] == expected
    assert [*blocks_at("last-9", 4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("position", ["last-0", "last-", "last--1", "last-1.5"])
def test_a_number_of_last_blocks_that_is_none_is_refused(position):
    with pytest.raises(InputError, match="or last-N"):
        blocks_at(position, 4)


def test_everything_leaves_out_what_no_embedding_depends_on(vit_b16):
    everything = Weights(["everything"])(vit_b16)
    named = dict(vit_b16.backbone.model.named_parameters())
    assert named.keys() - everything.keys() == {"logit_scale"}
    vit_b16.backbone.requires_grad_(False)


def test_a_resnets_matrices_are_the_convolutions_of_its_blocks():
    backbone = small_backbone(layers=(1, 1, 1, 1), width=8, head_width=16)
    explicit_attention(backbone.model)
    classifier = Classifier(backbone, backbone.tokenize(["a dog", "a cat"]))
    selected = Weights(ROLES, "vision")(classifier)
    assert {value.ndim for value in selected.values()} == {4}
    assert len(selected) == 4 * 3 + 4  # each block has three, and one in its shortcut
    with pytest.raises(InputError, match=r"the vision encoder .* adapter\.encoder=text"):
        Weights(["attention"])(classifier)


# Trainable parameters of ViT-B/16, from its widths: 12 + 12 blocks, 768 and 512 wide.
COUNTS = {
    "weights": 122_683_392,  # github nairouz/SO
    "layer_norm": 2 * (26 * 768 + 25 * 512),
    "bitfit": 12 * 11 * (768 + 512) + 2 * 768 + 512,
    "attention": 12 * 4 * (768**2 + 512**2),
    "last_blocks": 3 * 12 * (768**2 + 512**2),
    "everything": 149_620_737 - 1,
}


@pytest.mark.parametrize("adapter", COUNTS)
def test_how_many_parameters_an_adapter_opens(vit_b16, adapter):
    settings = from_config(compose([f"adapter={adapter}", "optimizer=adamw"]))
    options = dict(settings.method.adapter.options)
    selected = Weights(**options)(vit_b16)
    assert sum(value.numel() for value in selected.values()) == COUNTS[adapter]
    vit_b16.backbone.requires_grad_(False)
