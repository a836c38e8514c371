"""Explicit attention computes what open_clip's does, with its layout of state dicts."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.modified_resnet import AttentionPool2d
from open_clip.transformer import AttentionalPooler
from timm.layers.attention import Attention as TimmAttention
from timm.models.eva import EvaAttention
from timm.models.fastvit import Attention as FastVitAttention
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

from so_clip.clip.engine.attention import (
    ExplicitAttention,
    explicit_attention,
    saved_place,
    split_projections,
)
from so_clip.clip.engine.image_tower import encode_image, is_read_at_class_token
from so_clip.clip.engine.packed_text import ClassPrompts, PackedPrompts
from so_clip.clip.engine.split_projection import PARTS
from so_clip.clip.loading.architecture import architecture_config, build_model
from so_clip.clip.loading.embedded import embedded_weights
from so_clip.errors import InputError
from tests.helpers.open_clip_4 import Attention as OpenClip4Attention
from tests.helpers.open_clip_4 import NormedBlock, Pooler, open_clip_4
from tests.helpers.small_models import CONFIG

PROMPTS = ["a photo of a cat.", "a photo of a very small dog.", "!"]


def small(quick_gelu: bool = False, **extra: Any) -> Any:
    return build_model(CONFIG | extra, quick_gelu, seed=1).eval()


def tiny() -> Any:
    model: Any = build_model(architecture_config("tiny"), False, seed=1)
    model.load_state_dict(embedded_weights())
    return model.eval()


def coca() -> Any:
    return small(
        custom_text=True,
        text_cfg=CONFIG["text_cfg"] | {"embed_cls": True, "output_tokens": True},
        vision_cfg=CONFIG["vision_cfg"] | {"attentional_pool": True, "output_tokens": True},
        multimodal_cfg={"width": 32, "context_length": 8, "heads": 2, "layers": 1},
    )


MODELS: dict[str, Callable[[], Any]] = {
    "small": small,
    "quick gelu": lambda: small(quick_gelu=True),
    "custom text": lambda: small(custom_text=True),
    "no causal mask": lambda: small(text_cfg=CONFIG["text_cfg"] | {"no_causal_mask": True}),
    "resnet": lambda: small(vision_cfg=CONFIG["vision_cfg"] | {"layers": [1, 1, 1, 1]}),
    "coca": coca,
    "tiny": tiny,
    "wide": lambda: small(
        embed_dim=512,
        vision_cfg=CONFIG["vision_cfg"] | {"width": 768, "head_width": 64},
        text_cfg=CONFIG["text_cfg"] | {"width": 512, "heads": 8},
    ),
    "ViT-B-32": lambda: build_model(architecture_config("ViT-B-32-quickgelu"), True, seed=1).eval(),
}
SMALL_MODELS = [name for name in MODELS if name not in ("wide", "ViT-B-32")]
SLOW = [pytest.param("ViT-B-32", marks=pytest.mark.slow)]


def inputs(model: Any, count: int = 3) -> tuple[Tensor, Tensor]:
    from open_clip.tokenizer import SimpleTokenizer

    size = model.visual.image_size
    side = size if isinstance(size, int) else size[0]
    generator = torch.Generator().manual_seed(0)
    images_BCHW = torch.randn(count, 3, side, side, generator=generator)
    context = model.context_length - (1 if hasattr(model, "text_decoder") else 0)
    return images_BCHW, SimpleTokenizer(context_length=context)(PROMPTS)


def logits(model: Any, images_BCHW: Tensor, tokens_KL: Tensor) -> Tensor:
    image_BD = F.normalize(model.encode_image(images_BCHW), dim=-1)
    return image_BD @ F.normalize(model.encode_text(tokens_KL), dim=-1).T


def both(name: str) -> tuple[Any, Any, int]:
    plain = MODELS[name]()
    explicit = copy.deepcopy(plain)
    return plain, explicit, explicit_attention(explicit)


def open_clip_name(name: str) -> str:
    return name.replace("in_proj.weight", "in_proj_weight").replace("in_proj.bias", "in_proj_bias")


@pytest.mark.parametrize("name", [*SMALL_MODELS, "wide", *SLOW])
def test_logits_are_open_clips(name: str) -> None:
    plain, explicit, count = both(name)
    assert count == {"resnet": 3, "tiny": 10, "ViT-B-32": 24, "coca": 5}.get(name, 4)
    images_BCHW, tokens_KL = inputs(plain)
    for grad in (False, True):  # nn.MultiheadAttention takes another path without gradients
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(
                logits(explicit, images_BCHW, tokens_KL),
                logits(plain, images_BCHW, tokens_KL),
                atol=1e-5,
                rtol=0,
            )


@pytest.mark.parametrize("name", ["small", "quick gelu", "no causal mask", "coca", "tiny"])
def test_gradients_are_open_clips(name: str) -> None:
    plain, explicit, _ = both(name)
    images_BCHW, tokens_KL = inputs(plain)
    labels_B = torch.arange(len(images_BCHW)) % len(PROMPTS)
    for model in (plain, explicit):
        F.cross_entropy(100 * logits(model, images_BCHW, tokens_KL), labels_B).backward()
    expected = {key: value.grad for key, value in plain.named_parameters()}
    compared = 0
    for key, value in explicit.named_parameters():
        if "attn_pool.attn." in key:
            continue  # see the tests of poolers
        gradient = expected[open_clip_name(key)]
        if gradient is not None and gradient.abs().max() > 0:
            scale = gradient.abs().max()
            torch.testing.assert_close(value.grad / scale, gradient / scale, atol=1e-4, rtol=0)
            compared += "attn." in key
    assert compared >= 2 * 4


def test_every_projection_is_a_linear_layer() -> None:
    _, explicit, _ = both("small")
    named = dict(explicit.named_modules())
    for tower in ("visual.transformer", "transformer"):
        for projection in ("attn.in_proj", "attn.out_proj", "mlp.c_fc", "mlp.c_proj"):
            assert type(named[f"{tower}.resblocks.1.{projection}"]) is nn.Linear
    endings = ("attn.in_proj.weight", "attn.out_proj.weight", "c_fc.weight", "c_proj.weight")
    matrices = [name for name, _ in explicit.named_parameters() if name.endswith(endings)]
    assert len(matrices) == 4 * (2 + 2)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("name", ["small", "custom text", "tiny"])
def test_state_dicts_keep_open_clips_layout(name: str, split: bool) -> None:
    plain, explicit, _ = both(name)
    if split:
        for module in explicit.modules():
            if isinstance(module, ExplicitAttention):
                module.split()
    expected, saved = plain.state_dict(), explicit.state_dict()
    assert list(saved) == list(expected)
    assert all(torch.equal(saved[key], value) for key, value in expected.items())
    with torch.no_grad():
        for parameter in explicit.parameters():
            parameter.zero_()
    explicit.load_state_dict(expected)
    plain.load_state_dict(explicit.state_dict())
    images_BCHW, tokens_KL = inputs(plain)
    with torch.no_grad():
        torch.testing.assert_close(
            logits(explicit, images_BCHW, tokens_KL),
            logits(plain, images_BCHW, tokens_KL),
            atol=1e-5,
            rtol=0,
        )


def test_a_missing_projection_is_reported_by_name() -> None:
    _, explicit, _ = both("small")
    state = explicit.state_dict()
    del state["transformer.resblocks.0.attn.in_proj_bias"]
    missing = explicit.load_state_dict(state, strict=False).missing_keys
    assert missing == ["transformer.resblocks.0.attn.in_proj.bias"]


def test_parameters_are_reused_not_copied() -> None:
    plain = small()
    weight = plain.transformer.resblocks[0].attn.in_proj_weight
    explicit_attention(plain)
    assert plain.transformer.resblocks[0].attn.in_proj.weight is weight


def test_copies_and_pickles_keep_working() -> None:
    _, explicit, _ = both("small")
    images_BCHW, tokens_KL = inputs(explicit)
    for twin in (copy.deepcopy(explicit), pickle.loads(pickle.dumps(explicit))):
        assert torch.equal(
            logits(twin, images_BCHW, tokens_KL), logits(explicit, images_BCHW, tokens_KL)
        )
        assert list(twin.state_dict()) == list(explicit.state_dict())


def test_replacing_twice_does_nothing() -> None:
    _, explicit, _ = both("small")
    assert explicit_attention(explicit) == 0


def test_frozen_stays_frozen() -> None:
    model = small().requires_grad_(False)
    explicit_attention(model)
    attention = model.visual.transformer.resblocks[0].attn
    attention.split()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not attention.training


@pytest.mark.parametrize("name", ["small", "quick gelu", "no causal mask", "coca"])
def test_under_autocast(name: str) -> None:
    plain, explicit, _ = both(name)
    images_BCHW, tokens_KL = inputs(plain)
    with torch.no_grad():
        exact = logits(plain, images_BCHW, tokens_KL)
        with torch.autocast("cpu", torch.bfloat16):
            found = logits(explicit, images_BCHW, tokens_KL)
            expected = logits(plain, images_BCHW, tokens_KL)
    # Both round, in different ways. Each error stays within bfloat16's three digits.
    bound = max(0.02, 2 * (expected - exact).abs().max().item())
    assert (found - exact).abs().max().item() <= bound


@settings(deadline=None, max_examples=40)
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


@pytest.mark.parametrize("name", ["small", "coca", "tiny"])
def test_a_model_of_open_clip_4_has_the_logits_and_names_of_open_clip_3(name: str) -> None:
    plain = MODELS[name]()
    with open_clip_4():
        model = MODELS[name]()
        assert isinstance(model.visual.transformer.resblocks[0].attn, OpenClip4Attention)
        images_BCHW, tokens_KL = inputs(model)
        expected = logits(plain, images_BCHW, tokens_KL)
        torch.testing.assert_close(logits(model, images_BCHW, tokens_KL), expected)
        state = model.state_dict()
        assert list(state) == list(plain.state_dict())
        assert explicit_attention(model) == both(name)[2]
        assert list(model.state_dict()) == list(state)
        assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
        found = logits(model, images_BCHW, tokens_KL)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_norms_of_query_and_key_are_kept() -> None:
    with open_clip_4(NormedBlock):
        plain = small()
        for block in plain.visual.transformer.resblocks:
            nn.init.normal_(block.attn.ln_q.weight)
            nn.init.normal_(block.attn.ln_k.bias)
        explicit = copy.deepcopy(plain)
        assert explicit_attention(explicit) == 4
        assert list(explicit.state_dict()) == list(plain.state_dict())
        images_BCHW, tokens_KL = inputs(plain)
        expected = logits(plain, images_BCHW, tokens_KL)
        found = logits(explicit, images_BCHW, tokens_KL)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        # The class-token path and packed prompts normalise too.
        image_BD = encode_image(explicit, images_BCHW)
        assert is_read_at_class_token(explicit)
        prompts = ClassPrompts(explicit, tokens_KL)
        assert isinstance(prompts.chunks[0], PackedPrompts)
        rows = F.normalize(image_BD, dim=-1) @ F.normalize(prompts(explicit), dim=-1).T
        torch.testing.assert_close(rows, expected, atol=1e-5, rtol=0)


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


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("scaled_cosine_attn", "scaled_cosine"),
        ("scale_heads", "scale_heads"),
        ("scale_attn_inner", "inner_norm"),
    ],
)
def test_other_options_of_open_clips_attention_are_refused_by_name(option: str, name: str) -> None:
    model = small(text_cfg=CONFIG["text_cfg"] | {option: True})
    with pytest.raises(InputError, match=f"has {name}; only attention as in CLIP"):
        explicit_attention(model)


@pytest.mark.slow
def test_it_compiles_without_graph_breaks() -> None:
    _, explicit, _ = both("small")
    explicit.transformer.resblocks[1].attn.split()
    images_BCHW, tokens_KL = inputs(explicit)

    def loss(model: Any) -> Tensor:
        return logits(model, images_BCHW, tokens_KL).square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    found, expected = compiled(explicit), loss(explicit)
    torch.testing.assert_close(found, expected)
    parameter = explicit.transformer.resblocks[0].attn.in_proj.weight
    gradients = [torch.autograd.grad(value, parameter)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_it_is_built_from_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model: Any = small()
        assert explicit_attention(model) == 4
        features = model.encode_image(torch.zeros(2, 3, 32, 32))
        assert model.encode_text(torch.zeros(3, 77, dtype=torch.long)).shape == (3, 32)
    assert features.shape == (2, 32)
