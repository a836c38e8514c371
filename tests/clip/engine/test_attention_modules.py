"""Single attention modules, poolers and timm's attention: values, gradients and state dicts."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.modified_resnet import AttentionPool2d
from open_clip.transformer import AttentionalPooler
from timm.layers.attention import Attention as TimmAttention
from timm.models.eva import EvaAttention
from timm.models.fastvit import Attention as FastVitAttention
from timm.models.swin_transformer import WindowAttention
from torch import nn

from so_clip.clip.engine.attention import (
    ExplicitAttention,
    explicit_attention,
    saved_place,
    split_projections,
)
from so_clip.clip.engine.split_projection import PARTS
from so_clip.errors import InputError
from tests.helpers.open_clip_4 import Attention as OpenClip4Attention
from tests.helpers.open_clip_4 import Pooler


@settings(max_examples=40)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 9),
    heads=st.sampled_from([1, 2, 4]),
    head_width=st.integers(1, 5),
    mask=st.sampled_from(["none", "causal", "bool", "float", "per prompt"]),
    claim=st.booleans(),
    split=st.booleans(),
    bias=st.booleans(),
)
def test_it_equals_multihead_attention(
    batch: int,
    length: int,
    heads: int,
    head_width: int,
    mask: str,
    claim: bool,
    split: bool,
    bias: bool,
) -> None:
    width = heads * head_width
    with torch.random.fork_rng():
        torch.manual_seed(batch + 10 * length)
        source = nn.MultiheadAttention(width, heads, bias=bias, batch_first=True).double()
        x_BLD = torch.randn(batch, length, width, dtype=torch.float64)
        masks = {
            "none": None,
            "causal": torch.full((length, length), -torch.inf, dtype=torch.float64).triu(1),
            "bool": torch.ones(length, length, dtype=torch.bool).triu(1),
            "float": torch.randn(length, length, dtype=torch.float64),
            "per prompt": torch.randn(batch * heads, length, length, dtype=torch.float64),
        }
    attn_mask = masks[mask]
    expected = source(x_BLD, x_BLD, x_BLD, need_weights=False, attn_mask=attn_mask)[0]
    explicit = ExplicitAttention(source, causal=claim and mask in ("none", "causal", "bool"))
    if split:
        explicit.split()
        explicit.split()
    found, weights = explicit(x_BLD, x_BLD, x_BLD, need_weights=False, attn_mask=attn_mask)
    assert weights is None
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize(
    "options",
    [
        {"dropout": 0.1},
        {"batch_first": False},
        {"add_bias_kv": True},
        {"add_zero_attn": True},
    ],
)
def test_options_that_clip_does_not_use_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="only attention as in CLIP"):
        ExplicitAttention(nn.MultiheadAttention(8, 2, **{"batch_first": True} | options))


@pytest.mark.parametrize("context_width", [8, 12])
@pytest.mark.parametrize("version", [3, 4])
def test_the_layers_of_poolers_are_called(context_width: int, version: int) -> None:
    source: Any = (AttentionalPooler if version == 3 else Pooler)(8, context_width, 2, 3).double()
    nn.init.normal_(source.attn.in_proj_bias)
    model: Any = nn.Module()
    model.visual = nn.Module()
    model.visual.attn_pool = copy.deepcopy(source)
    pooler = model.visual.attn_pool
    assert explicit_attention(model) == 1
    assert explicit_attention(model) == 0
    x_BLD = torch.randn(2, 5, context_width, dtype=torch.float64)
    torch.testing.assert_close(pooler(x_BLD), source(x_BLD), atol=1e-12, rtol=1e-10)
    for module in (source, pooler):
        module(x_BLD).square().sum().backward()
    expected = source.state_dict(keep_vars=True)
    saved = pooler.state_dict(keep_vars=True)
    assert list(saved) == list(expected)
    assert {id(value) for value in saved.values()} == {id(value) for value in pooler.parameters()}
    for name, value in expected.items():
        assert torch.equal(saved[name], value)
        torch.testing.assert_close(saved[name].grad, value.grad, atol=1e-12, rtol=1e-10)
    output = pooler(x_BLD)
    parts = ["in_proj"] if context_width == 8 else [*PARTS]
    for part in [*parts, "out_proj"]:
        layer = pooler.attn.get_submodule(part)
        prefix, (first, end) = saved_place(model, f"visual.attn_pool.attn.{part}")
        assert torch.equal(model.state_dict()[f"{prefix}weight"][first:end], layer.weight)
        setattr(pooler.attn, part, nn.Sequential(layer, nn.Tanh()))
        assert not torch.allclose(pooler(x_BLD), output)
        setattr(pooler.attn, part, layer)
    pooler.load_state_dict({name: torch.zeros_like(value) for name, value in expected.items()})
    assert not any(value.any() for value in pooler.parameters())


def test_the_pooling_of_a_resnet_calls_its_layers() -> None:
    source = AttentionPool2d(spacial_dim=2, embed_dim=8, num_heads=2, output_dim=6).double()
    pooling = copy.deepcopy(source)
    assert explicit_attention(pooling) == 1
    assert explicit_attention(pooling) == 0
    assert list(pooling.state_dict()) == list(source.state_dict())
    x_BDHW = torch.randn(3, 8, 2, 2, dtype=torch.float64)
    for module in (source, pooling):
        module(x_BDHW).square().sum().backward()
    torch.testing.assert_close(pooling(x_BDHW), source(x_BDHW), atol=1e-12, rtol=1e-10)
    for name, value in pooling.named_parameters():
        expected = source.get_parameter(name).grad
        torch.testing.assert_close(value.grad, expected, atol=1e-12, rtol=1e-10)
    before = pooling(x_BDHW)
    for name in ("q_proj", "k_proj", "v_proj", "c_proj"):
        layer = pooling.get_submodule(name)
        setattr(pooling, name, nn.Sequential(layer, nn.Tanh()))
        assert not torch.allclose(pooling(x_BDHW), before), name
        setattr(pooling, name, layer)


def test_evas_attention_with_separate_biases_calls_its_layer() -> None:
    options: dict[str, Any] = {"qkv_bias": True, "norm_layer": nn.LayerNorm}
    source: Any = EvaAttention(8, 2, **options).double()
    nn.init.normal_(source.q_bias)
    nn.init.normal_(source.v_bias)
    x_BLD = torch.randn(2, 5, 8, dtype=torch.float64)
    expected = source(x_BLD)
    names = list(source.state_dict())
    explicit_attention(source)
    torch.testing.assert_close(source(x_BLD), expected, atol=1e-12, rtol=1e-10)
    assert list(source.state_dict()) == names
    source.qkv = nn.Sequential(source.qkv, nn.Tanh())
    assert not torch.allclose(source(x_BLD), expected)


@pytest.mark.parametrize("make", ["timm", "eva", "swin", "fastvit"])
def test_timms_one_layer_is_split_in_three(make: str) -> None:
    attention: Any = {
        "timm": lambda: TimmAttention(8, 2, qkv_bias=True),
        "eva": lambda: EvaAttention(8, 2, norm_layer=nn.LayerNorm),
        "swin": lambda: WindowAttention(8, 2, window_size=2),
        "fastvit": lambda: FastVitAttention(8, head_dim=4),
    }[make]()
    attention.double().requires_grad_(False)
    explicit_attention(attention)
    shape = (2, 8, 2, 2) if make == "fastvit" else (2, 4, 8)
    x = torch.randn(shape, dtype=torch.float64)
    expected, state = attention(x), attention.state_dict()
    split_projections(attention)
    split_projections(attention)
    torch.testing.assert_close(attention(x), expected, atol=1e-12, rtol=1e-10)
    saved = attention.state_dict()
    assert list(saved) == list(state)
    assert all(torch.equal(saved[key], value) for key, value in state.items())
    for index, part in enumerate(PARTS):
        layer = attention.get_submodule(f"qkv.{part}")
        assert type(layer) is nn.Linear
        assert not layer.weight.requires_grad
        assert saved_place(attention, f"qkv.{part}") == ("qkv.", (8 * index, 8 * index + 8))
        layer.weight.zero_()
    attention.load_state_dict(state)
    torch.testing.assert_close(attention(x), expected, atol=1e-12, rtol=1e-10)


def test_norms_keep_the_names_that_they_have_in_each_version() -> None:
    source: Any = OpenClip4Attention(nn.MultiheadAttention(8, 2, batch_first=True), norms=True)
    nn.init.normal_(source.ln_q.weight)
    x_BLD = torch.randn(2, 3, 8)
    expected_BLD = source(x_BLD)
    source.q_norm, source.k_norm = source.ln_q, source.ln_k
    del source.ln_q, source.ln_k
    explicit = ExplicitAttention(source)
    torch.testing.assert_close(explicit(x_BLD), expected_BLD)
    assert {*explicit.state_dict()} == {*source.state_dict()}
    explicit.split()
    torch.testing.assert_close(explicit(x_BLD), expected_BLD)
    source.scale_heads = True
    with pytest.raises(InputError, match="has scale_heads; only"):
        ExplicitAttention(source)
