"""Whole models with explicit attention: open_clip's logits, gradients and state dicts."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.engine.attention import ExplicitAttention, explicit_attention
from so_clip.clip.engine.image_tower import encode_image, is_read_at_class_token
from so_clip.clip.engine.packed_text import ClassPrompts, PackedPrompts
from so_clip.clip.loading.architecture import architecture_config, build_model
from so_clip.clip.loading.embedded import embedded_weights
from so_clip.errors import InputError
from tests.helpers.open_clip_4 import Attention as OpenClip4Attention
from tests.helpers.open_clip_4 import NormedBlock, open_clip_4
from tests.helpers.small_models import CONFIG, TOKENIZER

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
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("wide", "ViT-B-32")]


def inputs(model: Any, count: int = 3) -> tuple[Tensor, Tensor]:
    size = model.visual.image_size
    side = size if isinstance(size, int) else size[0]
    generator = torch.Generator().manual_seed(0)
    images_BCHW = torch.randn(count, 3, side, side, generator=generator)
    context = model.context_length - (1 if hasattr(model, "text_decoder") else 0)
    return images_BCHW, TOKENIZER(PROMPTS, context)


def logits(model: Any, images_BCHW: Tensor, tokens_KL: Tensor) -> Tensor:
    image_BD = F.normalize(model.encode_image(images_BCHW), dim=-1)
    return image_BD @ F.normalize(model.encode_text(tokens_KL), dim=-1).T


def both(name: str) -> tuple[Any, Any, int]:
    plain = MODELS[name]()
    explicit = copy.deepcopy(plain)
    return plain, explicit, explicit_attention(explicit)


def open_clip_name(name: str) -> str:
    return name.replace("in_proj.weight", "in_proj_weight").replace("in_proj.bias", "in_proj_bias")


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("name", [*SMALL_MODELS, *SLOW])
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


@pytest.mark.fast_cases(2)
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
            continue  # see test_attention_modules.py
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


@pytest.mark.fast_cases(2)
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
