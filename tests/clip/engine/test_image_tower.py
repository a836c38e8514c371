"""The vision tower with one row in its last block: the same numbers, and the memory it saves."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.engine.activation import lean_quick_gelu
from so_clip.clip.engine.attention import explicit_attention
from so_clip.clip.engine.blocks import MEMORY_MODES, Memory
from so_clip.clip.engine.image_tower import encode_image, in_pieces, is_read_at_class_token
from so_clip.clip.loading.architecture import architecture_config, build_model
from so_clip.clip.loading.embedded import embedded_weights
from so_clip.optim.sampled import sampled_gradients
from so_clip.optim.so import SO
from so_clip.runtime.peak_memory import PeakMemory
from tests.helpers.kept_tensors import OwnLinear, kept_bytes
from tests.helpers.small_models import CONFIG

EXACT = 1e-5  # relative to the largest value, in float32
SLOW = pytest.mark.slow


def plain(quick_gelu: bool = False, custom_text: bool = False, **vision: Any) -> Any:
    """Return a model as open_clip builds it."""
    config = CONFIG | {"vision_cfg": CONFIG["vision_cfg"] | vision, "custom_text": custom_text}
    return build_model(config, quick_gelu, seed=1).eval()


def tiny() -> Any:
    model: Any = build_model(architecture_config("tiny"), False, seed=1)
    model.load_state_dict(embedded_weights())
    return model.eval()


def vit_b32() -> Any:
    config = architecture_config("ViT-B-32-quickgelu")
    text = {"width": 64, "heads": 1, "layers": 1, "vocab_size": 100}  # not tested here
    return build_model(config | {"text_cfg": config["text_cfg"] | text}, True, seed=1).eval()


MODELS: dict[str, Callable[[], Any]] = {
    "gelu": plain,
    "quick gelu": lambda: plain(quick_gelu=True),
    "layer scale": lambda: plain(ls_init_value=0.5),
    "custom text": lambda: plain(custom_text=True),
    "norm after pooling": lambda: plain(final_ln_after_pool=True),
    "no norm before": lambda: plain(no_ln_pre=True),
    "one block": lambda: plain(layers=1),
    "tiny": tiny,
    "ViT-B-32": vit_b32,
}
OTHERS: dict[str, Callable[[], Any]] = {
    "resnet": lambda: plain(layers=[1, 1, 1, 1]),
    "average pooling": lambda: plain(pool_type="avg"),
    "attentional pooling": lambda: plain(attentional_pool=True),
    "all tokens returned": lambda: plain(output_tokens=True),
    "a block of another kind": lambda: plain(block_type="custom"),
}


def explicit(model: Any) -> Any:
    """Return a model as `load_backbone` builds it."""
    explicit_attention(model)
    lean_quick_gelu(model)
    return model


def pixels(model: Any, count: int = 3) -> Tensor:
    size = model.visual.image_size
    height, width = size if isinstance(size, tuple) else (size, size)
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(2))


def loss_of(image_BD: Tensor) -> Tensor:
    """Return a sum in which every value has another weight."""
    weights_BD = torch.randn(image_BD.shape, generator=torch.Generator().manual_seed(3))
    return (F.normalize(image_BD.float(), dim=-1) * weights_BD).sum()


def gradients(model: Any, encode: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    parameters = {
        name.replace("in_proj_", "in_proj."): parameter
        for name, parameter in model.visual.named_parameters()
        if parameter.requires_grad
    }
    image_BD = encode()
    grads = torch.autograd.grad(loss_of(image_BD), [*parameters.values()])
    return image_BD.detach(), dict(zip(parameters, grads, strict=True))


def assert_close(found: Tensor, expected: Tensor, name: str = "", tolerance: float = EXACT) -> None:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    scale = expected.abs().max().item()
    if name.endswith("in_proj.bias"):
        scale = max(scale, 1e-2)  # the gradient of the key's bias is zero up to rounding
    assert (found - expected).abs().max().item() <= tolerance * scale, name


def assert_same(
    found: tuple[Tensor, dict[str, Tensor]],
    expected: tuple[Tensor, dict[str, Tensor]],
    tolerance: float = EXACT,
) -> None:
    assert_close(found[0], expected[0], tolerance=tolerance)
    assert {*found[1]} == {*expected[1]}
    for name, grad in expected[1].items():
        assert_close(found[1][name], grad, name, tolerance)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=SLOW if name == "ViT-B-32" else ()) for name in MODELS]
)
def test_embeddings_and_gradients_are_open_clips(name: str) -> None:
    reference, model = MODELS[name](), explicit(MODELS[name]())
    assert is_read_at_class_token(model)
    images_BCHW = pixels(model, count=1 if name == "ViT-B-32" else 3)
    expected = gradients(reference, lambda: reference.encode_image(images_BCHW))
    for memory in MEMORY_MODES:
        assert_same(gradients(model, partial(encode_image, model, images_BCHW, memory)), expected)
    with torch.no_grad():
        outputs = [encode_image(model, images_BCHW, memory) for memory in MEMORY_MODES]
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def coca() -> Any:
    config = CONFIG | {
        "text_cfg": CONFIG["text_cfg"] | {"embed_cls": True, "output_tokens": True},
        "vision_cfg": CONFIG["vision_cfg"] | {"output_tokens": True},
        "multimodal_cfg": {"width": 32, "context_length": 8, "heads": 2, "layers": 1},
        "custom_text": True,
    }
    return build_model(config, False, seed=1).eval()


def test_other_towers_run_their_own_forward() -> None:
    models = {name: explicit(make()) for name, make in OTHERS.items()}
    models["nn.MultiheadAttention"] = plain()
    models["coca"] = explicit(coca())
    models["open_clip's checkpointing"] = explicit(plain())
    models["open_clip's checkpointing"].set_grad_checkpointing()
    for name, model in models.items():
        assert not is_read_at_class_token(model), name
        images_BCHW = pixels(model)
        for memory in MEMORY_MODES:
            found, expected = (
                encode_image(model, images_BCHW, memory),
                model.encode_image(images_BCHW),
            )
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_last_block_reads_and_writes_one_row_an_image() -> None:
    model = explicit(plain())
    rows: dict[str, list[int]] = {}

    def count(name: str) -> Callable[..., None]:
        return lambda module, inputs: rows.setdefault(name, []).append(inputs[0][..., 0].numel())

    for name, module in model.visual.named_modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            module.register_forward_pre_hook(count(name.split("resblocks.")[-1]))
    for memory in MEMORY_MODES:
        rows.clear()
        encode_image(model, pixels(model), memory)
        everything, one = [3 * 17], [3]
        assert rows == {
            "ln_pre": everything,
            **{f"0.{name}": everything for name in PARTS},
            **{
                f"1.{name}": everything if name in ("ln_1", "attn.in_proj") else one
                for name in PARTS
            },
            "ln_post": one,
        }


PARTS = ("ln_1", "attn.in_proj", "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")


def train_blocks(model: Any, start: int) -> None:
    """Train only the matrices of the vision blocks from `start` on."""
    model.requires_grad_(False)
    for block in model.visual.transformer.resblocks[start:]:
        for name, parameter in block.named_parameters():
            parameter.requires_grad_(name.endswith("weight") and "ln" not in name)


def kept(model: Any, memory: Memory) -> float:
    """Return the kept activations in units of the residual stream [tokens, D]."""
    images_BCHW = pixels(model, count=8)
    known = [images_BCHW, *model.parameters()]
    tokens = 8 * model.visual.positional_embedding.shape[0]
    kept = kept_bytes(partial(encode_image, model, images_BCHW, memory), known)
    return kept / (4 * tokens * model.visual.transformer.width)


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("start", [0, 2, 4])
def test_kept_activations_match_the_documented_arithmetic(quick_gelu: bool, start: int) -> None:
    model = explicit(plain(quick_gelu, layers=5))
    train_blocks(model, start)
    fast, balanced, small = (kept(model, memory) for memory in MEMORY_MODES)
    # In the last block, fast keeps the input, the normalised input, query, key and value, and one
    # row per image; the others keep the input.
    before_last, one_row, one_number = 4 - start, 1 / 17, 1 / 64
    # Nothing before the first trained matrix is kept, not even the input of the norm there.
    expected = 16 * before_last + 5 - 1 + one_row * 11
    assert expected < fast < expected + 8 * (before_last + 1) * one_number
    expected = 10 * before_last + 1
    assert expected < balanced < expected + 8 * before_last * one_number + 2 * one_row
    assert before_last + 1 < small < before_last + 1 + 2 * one_row


def test_balanced_takes_half_the_memory_of_open_clip() -> None:
    reference = plain(quick_gelu=True, layers=5)
    model = explicit(plain(quick_gelu=True, layers=5))
    images_BCHW = pixels(model, count=8)

    def peak(model: Any, encode: Callable[[Tensor], Tensor]) -> float:
        train_blocks(model, 0)
        trained = [p for p in model.visual.parameters() if p.requires_grad]
        with PeakMemory(model, None, torch.device("cpu")) as memory:
            torch.autograd.grad(loss_of(encode(images_BCHW)), trained[-1:])
        return memory.result()["activations_mib"]

    fast, balanced, small = (
        peak(model, partial(encode_image, model, memory=memory)) for memory in MEMORY_MODES
    )
    whole = peak(reference, reference.encode_image)
    assert fast < 0.75 * whole
    assert balanced < 0.5 * whole
    assert small < 0.3 * whole


def test_large_batches_run_in_pieces() -> None:
    model = explicit(plain())
    train_blocks(model, 1)
    images_BCHW = torch.randn(4000, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    pieces = in_pieces(model, images_BCHW)
    assert [len(piece) for piece in pieces] == [1334, 1334, 1332]
    assert 1334 * 17 * 4 * 64 < 2**23 < 4000 / 2 * 17 * 4 * 64
    assert torch.equal(torch.cat(pieces), images_BCHW)
    assert [len(piece) for piece in in_pieces(model, images_BCHW.to("meta"))] == [4000]
    assert [len(piece) for piece in in_pieces(model, images_BCHW[:0])] == [0]
    other = explicit(plain(pool_type="avg"))
    assert [len(piece) for piece in in_pieces(other, images_BCHW)] == [4000]
    expected = gradients(model, lambda: encode_image(model, images_BCHW))
    found = gradients(model, lambda: torch.cat([encode_image(model, piece) for piece in pieces]))
    assert_same(found, expected)


def test_linear_layers_with_a_custom_backward_pass() -> None:
    model, images_BCHW = explicit(plain(True)), pixels(plain())
    train_blocks(model, 0)
    expected = gradients(model, lambda: encode_image(model, images_BCHW))
    for module in model.visual.modules():
        if type(module) is nn.Linear:
            module.__class__ = OwnLinear
    for memory in MEMORY_MODES:
        run = partial(encode_image, model, images_BCHW, memory)
        assert_same(gradients(model, run), expected)


def test_separate_projections_for_query_key_and_value() -> None:
    model, images_BCHW = explicit(plain(True)), pixels(plain())
    train_blocks(model, 0)
    _, expected = gradients(model, lambda: encode_image(model, images_BCHW))
    for block in model.visual.transformer.resblocks:
        block.attn.split()
    for memory in MEMORY_MODES:
        _, found = gradients(model, partial(encode_image, model, images_BCHW, memory))
        for name, grad in expected.items():
            parts = [found[name.replace("in_proj", f"{part}_proj")] for part in "qkv"]
            assert_close(torch.cat(parts) if "in_proj" in name else parts[0], grad, name)


def test_sampled_gradients_are_the_dense_ones_in_every_memory_mode() -> None:
    model = explicit(plain(True))
    train_blocks(model, 0)
    images_BCHW = pixels(model)
    named = {name: p for name, p in model.visual.named_parameters() if p.requires_grad}
    optimizer = SO(named.values(), density_ratio=0.01)
    _, dense = gradients(model, lambda: encode_image(model, images_BCHW))
    with sampled_gradients(model, optimizer, always=True) as handle:
        assert len(handle.methods) == len(named) == 8
        for memory in MEMORY_MODES:
            loss_of(encode_image(model, images_BCHW, memory)).backward()
            for name, parameter in named.items():
                support_M = optimizer.support(parameter)
                assert support_M is not None
                expected_M = dense[name].take(support_M)
                assert_close(parameter.grad.values_M, expected_M, name)  # type: ignore[union-attr]
            optimizer.zero_grad()


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_bf16_autocast_is_as_exact_as_open_clips(quick_gelu: bool) -> None:
    reference, model = plain(quick_gelu), explicit(plain(quick_gelu))
    images_BCHW = pixels(model)
    exact_BD, exact = gradients(reference, lambda: reference.encode_image(images_BCHW))
    errors = {}

    def error(encode: Callable[[], Tensor], of: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            image_BD, grads = gradients(of, encode)
        pairs = [(image_BD, exact_BD), *((grads[name], exact[name]) for name in exact)]
        return torch.stack([(found - item).norm() / item.norm() for found, item in pairs])

    plain_error = error(lambda: reference.encode_image(images_BCHW), reference)
    for memory in MEMORY_MODES:
        errors = error(partial(encode_image, model, images_BCHW, memory), model)
        assert errors.mean() < 1.2 * plain_error.mean()
        assert (errors < 2 * plain_error + 1e-2).all()


def test_double_precision_stays() -> None:
    reference, model = plain().double(), explicit(plain()).double()
    images_BCHW = pixels(model).double()
    expected = gradients(reference, lambda: reference.encode_image(images_BCHW))
    for memory in MEMORY_MODES:
        run = partial(encode_image, model, images_BCHW, memory)
        assert_same(gradients(model, run), expected, tolerance=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("memory", MEMORY_MODES)
def test_it_compiles(memory: Memory) -> None:
    model = explicit(plain(quick_gelu=True))
    images_BCHW = pixels(model)
    run = partial(encode_image, model, images_BCHW, memory)
    compiled = torch.compile(run, backend="aot_eager")
    assert_same(gradients(model, compiled), gradients(model, run))
