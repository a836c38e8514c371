"""Models without weights: shapes of parameters in less than a second, for any size."""

import re
from copy import deepcopy
from functools import cache
from typing import Any

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from so_clip.clip.backbone import Backbone
from so_clip.clip.engine.activation import lean_quick_gelu
from so_clip.clip.engine.attention import explicit_attention
from so_clip.clip.loading.architecture import build_model
from so_clip.clip.pixels import CLIP_MEAN, CLIP_STD
from so_clip.clip.towers import TOWERS, named_blocks
from so_clip.clip.whole_prompts import Tokenizer


def bare_model(config: dict[str, Any]) -> nn.Module:
    """Return a model on the meta device, for its modules and shapes; it cannot run.

    Args:
        config: open_clip's model_cfg.

    Raises:
        InputError: see build_model.
    """
    with torch.device("meta"):
        return build_model(config, quick_gelu=False, seed=0).eval()


def backbone_without_weights(
    name: str, config: dict[str, Any], mode: FakeTensorMode, cut: bool = False
) -> Backbone:
    """Return a backbone on fake tensors, as a run would load it.

    Args:
        name: its description.
        config: open_clip's model_cfg.
        mode: of the fake tensors.
        cut: keep one block of each kind. Methods apply to the shorter model if they apply to the
            whole one, and it takes a tenth of the time.

    Raises:
        InputError: see build_model.
    """
    with mode:
        model = build_model(config, quick_gelu=bool(config.get("quick_gelu")), seed=0).eval()
        if cut:
            cut_blocks(model)
        explicit_attention(model)
        lean_quick_gelu(model)
        tokenizer = stand_in_tokenizer(config["text_cfg"]) if "text_cfg" in config else None
        backbone = Backbone(
            model,
            tokenizer,
            CLIP_MEAN,
            CLIP_STD,
            description=name,
            architecture=config | {"quick_gelu": bool(config.get("quick_gelu"))},
        )
        backbone.eval().requires_grad_(False).role_map()  # once, for all copies
        return backbone


def stand_in_tokenizer(text: dict[str, Any]) -> Tokenizer:
    """Return open_clip's tokenizer, or words as tokens where the tokenizer is on the hub.

    Args:
        text: text_cfg of open_clip's model_cfg.
    """
    length = int(text.get("context_length", 77))
    if text.get("hf_tokenizer_name"):
        return WordTokenizer(length, end=int(text.get("eos_id", 2)))
    return _simple_tokenizer(length)


@cache
def _simple_tokenizer(length: int) -> Tokenizer:
    tokenizer: Tokenizer = SimpleTokenizer(context_length=length)
    return tokenizer


class WordTokenizer:
    """Stands in for tokenizers of Hugging Face: a word is a token. It is laid out as RoBERTa's.

    Args:
        context_length: tokens of a prompt.
        end: the token after the words.
    """

    BEGIN, PADDING = 0, 1

    def __init__(self, context_length: int, end: int) -> None:
        self.context_length, self.end = context_length, end
        self.words: dict[str, int] = {}

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> Tensor:
        length = context_length or self.context_length
        rows = []
        for text in [texts] if isinstance(texts, str) else texts:
            words = re.findall(r"\w+|[^\w\s]", text.lower())
            for word in words:
                self.words.setdefault(word, self.end + 2 + len(self.words))
            ids = [self.BEGIN, *(self.words[word] for word in words)]
            ids = [*ids[: length - 1], self.end]
            rows.append(ids + [self.PADDING] * (length - len(ids)))
        return torch.tensor(rows, dtype=torch.int64)


def cut_blocks(model: nn.Module) -> None:
    """Keep one residual block of each kind in each stage of both towers."""
    for tower in TOWERS:
        stages: dict[str, list[nn.Module]] = {}
        for name, block in named_blocks(model, tower):
            stages.setdefault(name.rpartition(".")[0], []).append(block)
        for name, blocks in stages.items():
            kinds: dict[Any, int] = {}
            for i, block in enumerate(blocks):
                kinds.setdefault(_kind(block), i)
            container: Any = model.get_submodule(name)
            for i in reversed(range(len(blocks))):
                if i not in kinds.values():
                    del container[i]


def copy_without_weights(backbone: Backbone) -> Backbone:
    """Return a copy with new modules and the same tensors. Their values must not be read."""
    shared: dict[int, Any] = {
        id(value): value for value in (vars(backbone)["_tokenizer"], vars(backbone)["_parts"])
    }
    for module in backbone.modules():
        own: dict[str, Any] = vars(module)
        for held in (own, own["_parameters"], own["_buffers"]):
            shared |= {id(value): value for value in held.values() if isinstance(value, Tensor)}
    for parameter in backbone.parameters():
        parameter.grad = None
    return deepcopy(backbone, shared).requires_grad_(False)


def without_numbers(name: str) -> str:
    """Return a parameter's name with N in place of all numbers."""
    return re.sub(r"\d+", "N", name)


def _kind(block: nn.Module) -> Any:
    named = block.named_parameters()
    return tuple((without_numbers(name), tuple(value.shape)) for name, value in named)
