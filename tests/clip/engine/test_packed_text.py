"""Packed prompts have the embeddings and gradients of whole prompts, and compute a prefix once."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from so_clip.clip.engine.attention import ExplicitAttention, explicit_attention
from so_clip.clip.engine.blocks import Memory
from so_clip.clip.engine.packed_text import (
    ClassPrompts,
    PackedPrompts,
    prompts_to_end,
    split_by_rows,
)
from so_clip.clip.loading.architecture import build_model
from tests.helpers.packed_prompts import (
    CONTEXT,
    END,
    NO_CHUNKS,
    PROMPTS,
    START,
    assert_close,
    assert_same,
    gradients,
    padded,
    small,
    tokenize,
)
from tests.helpers.small_models import CONFIG


def split_projections() -> Any:
    model = small()
    for module in model.modules():
        if isinstance(module, ExplicitAttention):
            module.split()
    return model


PACKED: dict[str, Callable[[], Any]] = {
    "clip": small,
    "quick gelu": lambda: small(quick_gelu=True),
    "layer scale": lambda: small(ls_init_value=0.5),
    "read at a given end token": lambda: small(pool_type="eos", eos_id=END),
    "custom text": lambda: small(custom_text=True),
    "custom text, given end token": lambda: small(custom_text=True, pool_type="eos", eos_id=END),
    "projection with bias": lambda: small(custom_text=True, proj_bias=True),
    "no projection": lambda: small(custom_text=True, proj_type="none"),
    "q, k and v apart": split_projections,
    "one block": lambda: small(layers=1),
}


def coca() -> Any:
    config = CONFIG | {
        "text_cfg": CONFIG["text_cfg"] | {"embed_cls": True, "output_tokens": True},
        "vision_cfg": CONFIG["vision_cfg"] | {"attentional_pool": True, "output_tokens": True},
        "multimodal_cfg": {"width": 32, "context_length": 8, "heads": 2, "layers": 1},
        "custom_text": True,
    }
    model = build_model(config, False, seed=1).eval()
    explicit_attention(model)
    return model


PLAIN: dict[str, Callable[[], Any]] = {
    "nn.MultiheadAttention": lambda: build_model(CONFIG, False, seed=1).eval(),
    "no causal mask": lambda: small(no_causal_mask=True),
    "read at the last position": lambda: small(pool_type="last"),
    "a block of another kind": lambda: small(block_type="custom"),
    "all tokens returned": lambda: small(custom_text=True, output_tokens=True),
    "coca": coca,
}


@pytest.mark.fast_cases(4)
@pytest.mark.parametrize("name", PACKED)
def test_embeddings_and_gradients_are_those_of_whole_prompts(name: str) -> None:
    model, tokens_KL = PACKED[name](), tokenize(PROMPTS)
    prompts = assert_same(model, tokens_KL)
    assert all(isinstance(chunk, PackedPrompts) for chunk in prompts.chunks)
    chunked = assert_same(model, tokens_KL, budget_mib=0)
    assert len(chunked.chunks) == len(set(PROMPTS))


@pytest.mark.parametrize("budget_mib", [0.1, NO_CHUNKS])
def test_separate_prompts_share_no_rows(budget_mib: float) -> None:
    model, tokens_KL = small(), tokenize(PROMPTS)
    prompts = ClassPrompts(model, tokens_KL, budget_mib, separate=True)
    assert len(prompts.chunks) == (1 if budget_mib == NO_CHUNKS else 2)
    rows = sum(len(chunk.tokens_N) for chunk in prompts.chunks)
    assert rows == (tokens_KL != 0).sum()
    found_KD, found = gradients(model, lambda: prompts(model))
    expected_KD, expected = gradients(model, lambda: model.encode_text(tokens_KL))
    assert_close(found_KD, expected_KD)
    for name, grad in expected.items():
        assert_close(found[name], grad, name)


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("memory", ["balanced", "small"])
@pytest.mark.parametrize("name", ["quick gelu", "layer scale", "q, k and v apart"])
def test_gradients_are_the_same_in_every_memory_mode(name: str, memory: Memory) -> None:
    model, tokens_KL = PACKED[name](), tokenize(PROMPTS)
    expected_KD, expected = gradients(model, lambda: model.encode_text(tokens_KL))
    for budget_mib in (0, NO_CHUNKS):
        prompts = ClassPrompts(model, tokens_KL, budget_mib)
        found_KD, found = gradients(model, lambda prompts=prompts: prompts(model, memory))
        assert_close(found_KD, expected_KD)
        for parameter, grad in expected.items():
            assert_close(found[parameter], grad, parameter)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("name", PLAIN)
def test_other_models_read_whole_prompts(name: str) -> None:
    model = PLAIN[name]()
    tokens_KL = tokenize(PROMPTS)[:, : CONTEXT - (name == "coca")]
    assert prompts_to_end(model, tokens_KL) is None
    expected = model.encode_text(tokens_KL)
    for budget_mib in (0, NO_CHUNKS):
        prompts = ClassPrompts(model, tokens_KL, budget_mib)
        if name == "all tokens returned":
            continue  # this model returns no embedding
        torch.testing.assert_close(prompts(model), expected, rtol=0, atol=1e-5)
        (whole,) = prompts.chunks
        assert len(whole.chunks(model)) == (1 if budget_mib else len(set(PROMPTS)))


def test_share_prefixes_false_runs_whole_prompts() -> None:
    model, tokens_KL = small(), tokenize(PROMPTS)
    prompts = ClassPrompts(model, tokens_KL, share_prefixes=False)
    assert not any(isinstance(chunk, PackedPrompts) for chunk in prompts.chunks)
    torch.testing.assert_close(prompts(model), model.encode_text(tokens_KL), rtol=0, atol=1e-6)


SHORT = 9
SMALL_TOWER = small(context_length=SHORT)
# Few different tokens, so that prompts share beginnings, repeat, and begin one another.
token_lists = st.lists(
    st.lists(st.integers(0, 2), min_size=0, max_size=SHORT - 2), min_size=1, max_size=12
)


@settings(max_examples=15)
@given(token_lists, st.sampled_from([0.0, 0.05, 0.2, NO_CHUNKS]))
@example([[]], NO_CHUNKS)
@example([[1, 2, 0, 1, 2, 0, 1]] * 3, NO_CHUNKS)  # duplicates as long as the context
@example([[1], [1, 1], [1, 1, 1]], NO_CHUNKS)  # each begins the next
@example([[1, 2], [2, 1], [0, 1]], NO_CHUNKS)  # of one length
@example([[], [0] * (SHORT - 2)], NO_CHUNKS)
def test_any_prompts(prompts: list[list[int]], budget_mib: float) -> None:
    assert_same(SMALL_TOWER, padded(prompts, SHORT), budget_mib)


@settings(max_examples=15)
@given(token_lists)
def test_rows_are_the_distinct_prefixes(prompts: list[list[int]]) -> None:
    tree = PackedPrompts([[START, *prompt, END] for prompt in prompts])
    prefixes = {
        tuple([START, *prompt, END][: length + 1])
        for prompt in prompts
        for length in range(len(prompt) + 2)
    }
    assert len(tree.tokens_N) == len(prefixes)
    found = sorted(zip(tree.positions_N.tolist(), tree.tokens_N.tolist(), strict=True))
    assert found == sorted((len(prefix) - 1, prefix[-1]) for prefix in prefixes)
    for part, row_of_P in enumerate(tree.row_of_3P.chunk(3)):
        assert torch.equal(row_of_P[tree.place_of_N], 3 * torch.arange(len(prefixes)) + part)


@settings(max_examples=15)
@given(token_lists, st.integers(0, 30))
def test_chunks_hold_every_prompt_once_and_few_enough_rows(
    prompts: list[list[int]], most_rows: int
) -> None:
    chunks = split_by_rows(prompts, most_rows)
    assert sorted(itertools.chain(*chunks)) == list(range(len(prompts)))
    rows = [
        len({tuple(prompts[k][:n]) for k in chunk for n in range(1, len(prompts[k]) + 1)})
        for chunk in chunks
    ]
    for chunk, count in zip(chunks, rows, strict=True):
        assert count <= most_rows or len(chunk) == 1
        lengths = [len(prompts[k]) for k in chunk]
        assert lengths == sorted(lengths)


def test_chunks_are_recomputed_with_the_dropout_they_had() -> None:
    model = small()
    for block in model.transformer.resblocks:
        block.mlp.c_proj = nn.Sequential(nn.Dropout(0.5), block.mlp.c_proj)
    model.train()
    prompts = ClassPrompts(model, tokenize(PROMPTS), budget_mib=0)

    def kept() -> Tensor:
        class_KD = torch.cat([chunk(model) for chunk in prompts.chunks])
        return class_KD[prompts.place_K]

    results = []
    for encode in (lambda: prompts(model), kept):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            results.append(gradients(model, encode)[1])
    for name, grad in results[1].items():
        assert_close(results[0][name], grad, name)


def test_double_precision_stays() -> None:
    model, tokens_KL = small().double(), tokenize(PROMPTS)
    prompts = ClassPrompts(model, tokens_KL)
    assert_close(prompts(model), model.encode_text(tokens_KL), tolerance=1e-12)


class CountingLinear(torch.autograd.Function):
    """A linear layer whose backward pass is not torch's, as sampled gradients have."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, layer: Any) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x_ND)
        return F.linear(x_ND, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> Any:  # type: ignore[override]
        (x_ND,) = ctx.saved_tensors
        ctx.layer.own_grad = ctx.layer.own_grad + grad_ND.T @ x_ND
        return grad_ND @ ctx.layer.weight, None


class OwnLinear(nn.Linear):
    own_grad: Any = 0

    def forward(self, x: Tensor) -> Tensor:
        return CountingLinear.apply(x, self)


@pytest.mark.parametrize("budget_mib", [0, NO_CHUNKS])
def test_every_linear_layer_is_called_so_that_its_backward_can_be_replaced(
    budget_mib: float,
) -> None:
    model, tokens_KL = small(), tokenize(PROMPTS)
    _, expected = gradients(model, lambda: model.encode_text(tokens_KL))
    prompts = ClassPrompts(model, tokens_KL, budget_mib)
    linears = {
        name: module
        for name, module in model.transformer.named_modules()
        if isinstance(module, nn.Linear)
    }
    assert len(linears) == 8
    for linear in linears.values():
        linear.__class__ = OwnLinear
    prompts(model).sum()  # no graph is left behind by a pass that nothing follows
    class_KD = prompts(model)
    weights_KD = torch.randn(class_KD.shape, generator=torch.Generator().manual_seed(2))
    (F.normalize(class_KD, dim=-1) * weights_KD).sum().backward()
    for name, linear in linears.items():
        assert linear.weight.grad is None
        assert_close(linear.own_grad, expected[f"transformer.{name}.weight"], name)


def test_only_rows_pass_through_the_linear_layers_and_only_ends_through_the_last() -> None:
    model, tokens_KL = small(), tokenize(PROMPTS)
    prompts = ClassPrompts(model, tokens_KL)
    [packed] = prompts.chunks
    seen = {}
    for name, module in model.transformer.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(
                lambda module, inputs, output, name=name: seen.update({name: len(output)})
            )
    prompts(model)
    rows = len(packed.tokens_N)
    assert rows < 20
    for name, count in seen.items():
        after_last_mix = name.startswith("resblocks.1.") and not name.endswith("in_proj")
        assert count == (len(set(PROMPTS)) if after_last_mix else rows), name


def test_packed_prompts_hold_no_state_and_no_model_and_move_with_their_parent() -> None:
    prompts = ClassPrompts(small(), tokenize(PROMPTS), budget_mib=0)
    assert not prompts.state_dict()
    assert not [*prompts.parameters()]
    assert {buffer.device.type for buffer in prompts.to("meta").buffers()} == {"meta"}


@pytest.mark.parametrize("budget_mib", [0.1, NO_CHUNKS])
def test_prompts_may_come_as_lists_of_their_tokens(budget_mib: float) -> None:
    model, tokens_KL = small(), tokenize(PROMPTS)
    lists = prompts_to_end(model, tokens_KL)
    assert lists is not None
    found = ClassPrompts(model, lists, budget_mib)(model)
    assert torch.equal(found, ClassPrompts(model, tokens_KL, budget_mib)(model))
