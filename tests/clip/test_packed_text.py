import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from so_clip.clip.activation import lean_quick_gelu
from so_clip.clip.architecture import build_model
from so_clip.clip.attention import ExplicitAttention, explicit_attention
from so_clip.clip.blocks import MEMORY_MODES, Memory
from so_clip.clip.packed_text import ClassPrompts, PackedPrompts, prompts_to_end, split_by_rows
from so_clip.clip.prompts import class_prompts
from so_clip.data.cards import card_names, load_card
from so_clip.memory import PeakMemory
from tests.clip.kept import kept_bytes
from tests.clip.small import CONFIG

EXACT = 1e-5  # of the largest value, in float32
VOCABULARY, CONTEXT = 49408, 77
START, END = VOCABULARY - 2, VOCABULARY - 1
NO_CHUNKS = 1e9


def small(quick_gelu: bool = False, custom_text: bool = False, **text: Any) -> Any:
    config = CONFIG | {"text_cfg": CONFIG["text_cfg"] | text}
    model = build_model(config | {"custom_text": custom_text}, quick_gelu, seed=1).eval()
    explicit_attention(model)
    return model


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


def padded(prompts: Sequence[Sequence[int]], context: int = CONTEXT) -> Tensor:
    """Prompts as the tokenizer lays them out, from the tokens between start and end."""
    tokens_KL = torch.zeros(len(prompts), context, dtype=torch.int64)
    for row, prompt in zip(tokens_KL, prompts, strict=True):
        row[: len(prompt) + 2] = torch.tensor([START, *prompt, END])
    return tokens_KL


def tokenize(prompts: list[str]) -> Tensor:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()(prompts)


def text_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if not name.startswith("visual.") and not name.startswith("logit_")
    }


def gradients(model: Any, encode: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Class embeddings, and what a loss that weighs every value differently says of each weight."""
    parameters = text_parameters(model)
    class_KD = encode()
    weights_KD = torch.randn(class_KD.shape, generator=torch.Generator().manual_seed(2))
    loss = (F.normalize(class_KD.float(), dim=-1) * weights_KD).sum()
    grads = torch.autograd.grad(loss, [*parameters.values()])
    return class_KD.detach(), dict(zip(parameters, grads, strict=True))


def assert_close(found: Tensor, expected: Tensor, name: str = "", tolerance: float = EXACT) -> None:
    assert found.shape == expected.shape
    scale = expected.abs().max().item()
    if name.endswith("k_proj.bias"):
        scale = 1.0  # Attention ignores it: its gradient is zero but for rounding.
    assert (found - expected).abs().max().item() <= tolerance * scale, name


def assert_same(model: Any, tokens_KL: Tensor, budget_mib: float = NO_CHUNKS) -> ClassPrompts:
    prompts = ClassPrompts(model, tokens_KL, budget_mib)
    found_KD, found = gradients(model, lambda: prompts(model))
    expected_KD, expected = gradients(model, lambda: model.encode_text(tokens_KL))
    assert_close(found_KD, expected_KD)
    for name, grad in expected.items():
        assert_close(found[name], grad, name)
    return prompts


PROMPTS = ["a photo of a cat.", "a photo of a very small dog.", "!", "a photo of a cat."]


@pytest.mark.parametrize("name", PACKED)
def test_embeddings_and_gradients_are_those_of_whole_prompts(name: str) -> None:
    model, tokens_KL = PACKED[name](), tokenize(PROMPTS)
    prompts = assert_same(model, tokens_KL)
    assert all(isinstance(chunk, PackedPrompts) for chunk in prompts.chunks)
    chunked = assert_same(model, tokens_KL, budget_mib=0)
    assert len(chunked.chunks) == len(PROMPTS)


@pytest.mark.parametrize("budget_mib", [0.1, NO_CHUNKS])
def test_apart_each_prompt_has_rows_of_its_own(budget_mib: float) -> None:
    model, tokens_KL = small(), tokenize(PROMPTS)
    prompts = ClassPrompts(model, tokens_KL, budget_mib, apart=True)
    assert len(prompts.chunks) == (1 if budget_mib == NO_CHUNKS else 2)
    rows = sum(len(chunk.tokens_N) for chunk in prompts.chunks)
    assert rows == (tokens_KL != 0).sum()
    found_KD, found = gradients(model, lambda: prompts(model))
    expected_KD, expected = gradients(model, lambda: model.encode_text(tokens_KL))
    assert_close(found_KD, expected_KD)
    for name, grad in expected.items():
        assert_close(found[name], grad, name)


@pytest.mark.parametrize("memory", ["balanced", "small"])
@pytest.mark.parametrize("name", ["quick gelu", "layer scale", "q, k and v apart"])
def test_whatever_is_kept(name: str, memory: Memory) -> None:
    model, tokens_KL = PACKED[name](), tokenize(PROMPTS)
    expected_KD, expected = gradients(model, lambda: model.encode_text(tokens_KL))
    for budget_mib in (0, NO_CHUNKS):
        prompts = ClassPrompts(model, tokens_KL, budget_mib)
        found_KD, found = gradients(model, lambda prompts=prompts: prompts(model, memory))
        assert_close(found_KD, expected_KD)
        for parameter, grad in expected.items():
            assert_close(found[parameter], grad, parameter)


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_less_is_kept(quick_gelu: bool) -> None:
    model = small(quick_gelu, layers=6, width=64).requires_grad_(False)
    lean_quick_gelu(model)
    model.transformer.requires_grad_(True)
    prompts = ClassPrompts(model, imagenet_tokens(100), NO_CHUNKS)
    [packed] = prompts.chunks
    known = [*model.parameters(), *prompts.buffers()]
    fast, balanced, small_ = (
        kept_bytes(partial(prompts, model, memory), known) / (len(packed.tokens_N) * 64 * 4)
        for memory in MEMORY_MODES
    )
    # Five blocks of 16, 10 or 1, and the last one's input, query, key and value; few ends.
    assert 5 * 16 < fast < 5 * 17 + 6
    assert 5 * 10 < balanced < 5 * 11 + 6
    assert 5 < small_ < 5 + 3


@pytest.mark.parametrize("name", PLAIN)
def test_other_models_read_whole_prompts(name: str) -> None:
    model = PLAIN[name]()
    tokens_KL = tokenize(PROMPTS)[:, : CONTEXT - (name == "coca")]
    assert prompts_to_end(model, tokens_KL) is None
    expected = model.encode_text(tokens_KL)
    for budget_mib in (0, NO_CHUNKS):
        prompts = ClassPrompts(model, tokens_KL, budget_mib)
        if name == "all tokens returned":
            continue  # what it returns is no embedding, here or there
        torch.testing.assert_close(prompts(model), expected, rtol=0, atol=1e-5)
        assert len(prompts.chunks) == (1 if budget_mib else len(PROMPTS))


def test_prefixes_are_not_shared_where_that_is_not_wanted() -> None:
    model, tokens_KL = small(), tokenize(PROMPTS)
    prompts = ClassPrompts(model, tokens_KL, share_prefixes=False)
    assert not any(isinstance(chunk, PackedPrompts) for chunk in prompts.chunks)
    assert torch.equal(prompts(model), model.encode_text(tokens_KL))


SHORT = 9
SMALL_TOWER = small(context_length=SHORT)
# Few different tokens, so that prompts share beginnings, repeat, and begin one another.
token_lists = st.lists(
    st.lists(st.integers(0, 2), min_size=0, max_size=SHORT - 2), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None)
@given(token_lists, st.sampled_from([0.0, 0.05, 0.2, NO_CHUNKS]))
@example([[]], NO_CHUNKS)
@example([[1, 2, 0, 1, 2, 0, 1]] * 3, NO_CHUNKS)  # duplicates as long as the context
@example([[1], [1, 1], [1, 1, 1]], NO_CHUNKS)  # each begins the next
@example([[1, 2], [2, 1], [0, 1]], NO_CHUNKS)  # of one length
@example([[], [0] * (SHORT - 2)], NO_CHUNKS)
def test_any_prompts(prompts: list[list[int]], budget_mib: float) -> None:
    assert_same(SMALL_TOWER, padded(prompts, SHORT), budget_mib)


@settings(max_examples=60, deadline=None)
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
    assert torch.equal(tree.row_of_P[tree.place_of_N], torch.arange(len(prefixes)))


@settings(max_examples=60, deadline=None)
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


ROWS = {  # with the plain template; whole prompts are 77 times the classes
    "caltech101": 349,
    "digits": 35,
    "dtd": 191,
    "eurosat": 49,
    "fgvc": 560,
    "food101": 415,
    "imagenet": 4008,
    "oxford_flowers": 463,
    "oxford_pets": 157,
    "stanford_cars": 1135,
    "sun397": 1469,
    "ucf101": 403,
}


@pytest.mark.parametrize("name", [name for name in card_names() if name in ROWS])
def test_rows_and_embeddings_of_the_benchmark_datasets(name: str) -> None:
    card = load_card(name)
    tokens_KL = tokenize(class_prompts(card.class_names, card.template_sets["plain"]))
    model = small(layers=2)
    prompts = ClassPrompts(model, tokens_KL, NO_CHUNKS)
    [packed] = prompts.chunks
    assert len(packed.tokens_N) == ROWS[name]
    with torch.no_grad():
        assert_close(prompts(model), model.encode_text(tokens_KL))
    if len(tokens_KL) < 200:
        assert_same(model, tokens_KL, budget_mib=2)


def imagenet_tokens(count: int) -> Tensor:
    card = load_card("imagenet")
    names = card.class_names[:: len(card.class_names) // count]
    return tokenize(class_prompts(names, card.template_sets["plain"]))


def peak_activations_mib(model: Any, prompts: ClassPrompts) -> float:
    with PeakMemory(model, None, torch.device("cpu")) as peak:
        (F.normalize(prompts(model), dim=-1) ** 3).sum().backward()
    model.zero_grad(set_to_none=True)
    return peak.result()["activations_mib"]


@pytest.mark.parametrize("share_prefixes", [True, False])
def test_a_thousand_classes_take_no_more_memory_than_a_hundred(share_prefixes: bool) -> None:
    model = small(layers=6 if share_prefixes else 2, width=64).requires_grad_(False)
    model.transformer.requires_grad_(True)
    hundred, thousand = imagenet_tokens(100), imagenet_tokens(1000)
    assert (len(hundred), len(thousand)) == (100, 1000)

    def peak_mib(tokens_KL: Tensor, budget_mib: float) -> float:
        prompts = ClassPrompts(model, tokens_KL, budget_mib, share_prefixes)
        return peak_activations_mib(model, prompts)

    few_mib = peak_mib(hundred, NO_CHUNKS)
    assert peak_mib(thousand, 0.9 * few_mib) <= few_mib
    if share_prefixes:
        assert peak_mib(thousand, NO_CHUNKS) > 6 * few_mib


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_the_budget_holds(quick_gelu: bool) -> None:
    model = small(quick_gelu, layers=8, width=64)
    model.token_embedding.requires_grad_(False)  # its dense gradient passes as an activation
    tokens_KL = imagenet_tokens(500)
    for budget_mib in (5.0, 20.0):
        prompts = ClassPrompts(model, tokens_KL, budget_mib)
        assert len(prompts.chunks) > 1
        peak_mib = peak_activations_mib(model, prompts)
        # Less is taken where GELU keeps less; the work on one block comes on top.
        assert 0.6 * budget_mib < peak_mib < 1.4 * budget_mib


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


def test_in_half_precision_the_shared_beginning_keeps_its_gradient() -> None:
    model = small()
    tokens_KL = imagenet_tokens(1000)
    prompts = ClassPrompts(model, tokens_KL, NO_CHUNKS)
    _, exact = gradients(model, lambda: prompts(model))
    with torch.autocast("cpu", torch.bfloat16):
        class_KD, packed = gradients(model, lambda: prompts(model))
        plain_KD, plain = gradients(model, lambda: model.encode_text(tokens_KL))
    assert_close(class_KD.float(), plain_KD.float(), tolerance=0.03)
    for name, grad in exact.items():
        error = (packed[name] - grad).norm() / grad.norm()
        assert error <= 1.3 * (plain[name] - grad).norm() / grad.norm() + 1e-3, name


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
        assert count == (len(PROMPTS) if after_last_mix else rows), name


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
