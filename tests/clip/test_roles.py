"""The role map: every parameter that an embedding reaches, with its tower, block and role."""

import re
from collections import Counter

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from so_clip.clip.engine.attention import explicit_attention
from so_clip.clip.loading.architecture import architecture_config, build_model
from so_clip.clip.roles import GROUPS, Part, role_map
from so_clip.clip.towers import TOWERS, named_blocks
from tests.helpers.small_models import small_backbone

# One architecture of each structure, with the number of its blocks, of its matrices in the image
# tower, and one name with its roles.
ARCHITECTURES = {
    "ViT-B-16": (12, 48, "visual.conv1.weight", {"patch_embedding"}),
    "ViT-B-16-SigLIP": (12, 48, "visual.trunk.attn_pool.kv.weight", {"pooling"}),
    "EVA02-B-16": (12, 84, "visual.trunk.blocks.3.attn.k_proj.weight", {"attention_in", "key"}),
    "EVA01-g-14": (40, 160, "visual.trunk.blocks.39.attn.q_bias", {"bias"}),
    "PE-Core-T-16-384": (12, 48, "visual.trunk.norm_pre.weight", {"norm"}),
    "ViTamin-S": (14, 70, "visual.trunk.blocks.0.mlp.w1.weight", {"mlp_in"}),
    "MobileCLIP2-S0": (20, 117, "visual.trunk.stages.3.pos_emb.pos_enc.bias", {"bias"}),
    "convnext_large_d": (36, 111, "visual.head.mlp.fc1.weight", {"projection"}),
    "RN50": (16, 52, "visual.attnpool.c_proj.weight", {"pooling"}),
    "swin_base_patch4_window7_224": (
        *(24, 99, "visual.trunk.layers.0.blocks.1.attn.relative_position_bias_table"),
        {"position_embedding"},
    ),
    "coca_ViT-B-32": (12, 48, "visual.attn_pool.query", {"pooling"}),
}


FAST = {"ViT-B-16", "ViT-B-16-SigLIP", "EVA02-B-16", "coca_ViT-B-32"}


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    "architecture",
    [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in ARCHITECTURES],
)
def test_the_map_of_an_architecture(architecture):
    blocks, matrices, name, roles = ARCHITECTURES[architecture]
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = explicit(build_model(architecture_config(architecture), False, seed=0).eval())
    parts = {part.name: part for part in role_map(model)}
    assert len(named_blocks(model, "vision")) == blocks
    assert parts[name].roles == roles
    chosen = [part for part in parts.values() if part.roles & {*GROUPS["matrices"]}]
    assert sum(part.tower == "vision" for part in chosen) == matrices
    assert {part.tower for part in chosen} == {*TOWERS}
    assert not any("other" in part.roles for part in parts.values())
    assert not any(part.name.startswith(("text_decoder.", "logit_")) for part in parts.values())
    in_blocks = {part.block for part in chosen if part.tower == "vision"} - {None}
    assert in_blocks == {*range(blocks)}


def explicit(model):
    explicit_attention(model)
    return model


def test_the_blocks_go_from_input_to_output():
    model = small_backbone().model
    names = [name for name, _ in named_blocks(model, "text")]
    assert names == ["transformer.resblocks.0", "transformer.resblocks.1"]


def test_every_parameter_with_a_gradient_is_in_the_map_and_no_other():
    """The oracle: a backward pass through both embeddings."""
    model = small_backbone().model.requires_grad_(True)
    tokens_KL = torch.randint(1, 99, (3, model.context_length))
    (
        model.encode_image(torch.rand(2, 3, 32, 32)).sum() + model.encode_text(tokens_KL).sum()
    ).backward()
    expected = {name for name, value in model.named_parameters() if value.grad is not None}
    assert {part.name for part in role_map(model)} == expected
    assert all(value.requires_grad for value in model.parameters())
    assert "logit_scale" not in expected


def test_a_module_that_no_embedding_uses_is_left_out():
    model = small_backbone().model
    before = len(role_map(model))
    model.visual.spare = nn.Linear(2, 2)
    assert len(role_map(model)) == before


def _hugging_face_text(config, pooler, encoder=False):
    """Return a model with open_clip's wrapper around a small text model of transformers."""
    from open_clip.hf_model import HFTextEncoder

    model = small_backbone().model
    text = HFTextEncoder("", 32, config=config, pooler_type=pooler, proj_type="mlp")
    if encoder:
        text.transformer = text.transformer.encoder
    del model.transformer
    model.text = text.eval()
    model.encode_text = lambda tokens_KL: text(tokens_KL)
    return model


def _text_roles(parts: list[Part]) -> Counter[str]:
    return Counter(
        role for part in parts if part.name.startswith("text.") for role in sorted(part.roles)
    )


SMALL = {"vocab_size": 99, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize("pooler", ["cls_pooler", "mean_pooler"])
def test_the_roles_of_bert(pooler):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(**SMALL, intermediate_size=32)
    model = _hugging_face_text(config, pooler)
    parts = role_map(model)
    roles = _text_roles(parts)
    assert [roles[role] for role in ("query", "key", "value", "attention_in")] == [2, 2, 2, 6]
    assert [roles[role] for role in ("attention_out", "mlp_in", "mlp_out", "other")] == [2, 2, 2, 0]
    assert roles["projection"] == 2
    assert roles["pooling"] == (2 if pooler == "cls_pooler" else 0)
    assert {part.block for part in parts if "query" in part.roles} == {0, 1}


@pytest.mark.parametrize(
    ("name", "sizes", "mlp_in"),
    [
        ("MT5Config", {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}, 4),
        (
            "M2M100Config",
            {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2}
            | {"encoder_ffn_dim": 32, "decoder_layers": 1, "decoder_attention_heads": 2},
            2,
        ),
    ],
)
def test_the_roles_of_t5_and_nllb(name, sizes, mlp_in):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, name)(vocab_size=99, **sizes)
    roles = _text_roles(role_map(_hugging_face_text(config, "mean_pooler", encoder=True)))
    counts = [roles[role] for role in ("query", "key", "value", "attention_out", "mlp_out")]
    assert counts == [2] * 5
    assert (roles["mlp_in"], roles["other"]) == (mlp_in, 0)
    assert roles["token_embedding"] == 1


def test_a_block_is_named_once():
    model = small_backbone().model
    numbered = [part for part in role_map(model) if part.block is not None]
    assert all(re.search(rf"resblocks\.{part.block}\.", part.name) for part in numbered)
