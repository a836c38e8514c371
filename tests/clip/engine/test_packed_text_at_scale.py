"""Packed prompts of real class names: their rows, and their memory."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from so_clip.clip.engine.activation import lean_quick_gelu
from so_clip.clip.engine.blocks import MEMORY_MODES
from so_clip.clip.engine.packed_text import ClassPrompts
from so_clip.clip.prompts import class_prompts
from so_clip.data.cards.card import card_names, load_card
from so_clip.runtime.peak_memory import PeakMemory
from tests.helpers.kept_tensors import kept_bytes
from tests.helpers.packed_prompts import (
    NO_CHUNKS,
    assert_close,
    assert_same,
    gradients,
    imagenet_tokens,
    small,
    tokenize,
)


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_memory_modes_keep_the_documented_activations(quick_gelu: bool) -> None:
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
    # Five blocks of 16, 10 or 1, and the last block's input, query, key and value; few end rows.
    assert 5 * 16 < fast < 5 * 17 + 6
    assert 5 * 10 < balanced < 5 * 11 + 6
    assert 5 < small_ < 5 + 3


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


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("digits", "dtd", "ucf101") else pytest.mark.slow)
        for name in card_names()
        if name in ROWS
    ],
)
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


def peak_activations_mib(model: Any, prompts: ClassPrompts) -> float:
    with PeakMemory(model, None, torch.device("cpu")) as peak:
        (F.normalize(prompts(model), dim=-1) ** 3).sum().backward()
    model.zero_grad(set_to_none=True)
    return peak.result()["activations_mib"]


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_the_budget_holds(quick_gelu: bool) -> None:
    model = small(quick_gelu, layers=8, width=64)
    model.token_embedding.requires_grad_(False)  # its dense gradient counts as an activation
    tokens_KL = imagenet_tokens(500)
    for budget_mib in (5.0, 20.0):
        prompts = ClassPrompts(model, tokens_KL, budget_mib)
        assert len(prompts.chunks) > 1
        peak_mib = peak_activations_mib(model, prompts)
        # GELU may keep less than estimated; temporaries of one block are added.
        assert 0.6 * budget_mib < peak_mib < 1.4 * budget_mib


@pytest.mark.slow
def test_in_half_precision_the_shared_prefix_keeps_its_gradient() -> None:
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
