"""Small text towers, prompts, and gradients of whole prompts to compare with."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.engine.attention import explicit_attention
from so_clip.clip.engine.packed_text import ClassPrompts
from so_clip.clip.loading.architecture import build_model
from so_clip.clip.prompts import class_prompts
from so_clip.data.cards.card import load_card
from tests.helpers.small_models import CONFIG

EXACT = 1e-5  # relative to the largest value, in float32
VOCABULARY, CONTEXT = 49408, 77
START, END = VOCABULARY - 2, VOCABULARY - 1
NO_CHUNKS = 1e9


def small(quick_gelu: bool = False, custom_text: bool = False, **text: Any) -> Any:
    config = CONFIG | {"text_cfg": CONFIG["text_cfg"] | text}
    model = build_model(config | {"custom_text": custom_text}, quick_gelu, seed=1).eval()
    explicit_attention(model)
    return model


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
        scale = 1.0  # Attention ignores the key's bias: its gradient is zero up to rounding.
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


def imagenet_tokens(count: int) -> Tensor:
    card = load_card("imagenet")
    names = card.class_names[:: len(card.class_names) // count]
    return tokenize(class_prompts(names, card.template_sets["plain"]))
