"""Token ids of prompts that are never cut. open_clip's tokenizers cut without a message."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from so_clip.data.plain_files import shortened
from so_clip.errors import InputError

Tokenizer = Callable[..., Tensor]
# The exact length of a longer prompt is not computed.
_MOST_COUNTED = 16


def tokenize_whole(tokenizer: Tokenizer, prompts: list[str]) -> Tensor:
    """Return the prompts' token ids, tokens_PL.

    A prompt is whole if a tokenizer with room for one more token adds one padding token and
    changes nothing else. This holds for every tokenizer of open_clip: its own, those of Hugging
    Face, and SigLIP's; with the padding at the end, at the start, or before a class token.

    Args:
        tokenizer: maps texts, and the option context_length, to token ids [texts, length].
        prompts: the texts.

    Raises:
        InputError: a prompt is longer than the text encoder reads.
    """
    tokens_PL = tokenizer(prompts)
    length = tokens_PL.shape[1]
    cut_P = _are_cut(tokenizer, prompts, tokens_PL)
    if cut_P.any():
        prompt = prompts[int(cut_P.int().argmax())]
        raise InputError(
            f"the prompt {shortened(prompt)} takes {_count(tokenizer, prompt, length)} tokens, but "
            f"the text encoder reads {length}. Shorten the class name or the template."
        )
    return tokens_PL


def decoded(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Return the text of tokens, without special tokens; their ids if there is no decoder."""
    ids = list(tokens)
    if decode := getattr(tokenizer, "decode", None):
        return str(decode(ids)).strip()
    if inner := getattr(tokenizer, "tokenizer", None):  # a tokenizer of Hugging Face
        return str(inner.decode(ids, skip_special_tokens=True)).strip()
    return str(ids)


def _are_cut(tokenizer: Tokenizer, prompts: list[str], tokens_PL: Tensor) -> Tensor:
    """Return for each prompt whether a part of it is missing in tokens_PL."""
    longer_PM = tokenizer(prompts, context_length=tokens_PL.shape[1] + 1)
    before, after = tokens_PL == longer_PM[:, :-1], tokens_PL == longer_PM[:, 1:]
    # For each place of the additional token: whether all tokens before it and after it agree.
    same_before = F.pad(before.int(), (1, 0), value=1).cumprod(1).bool()
    same_after = F.pad(after.int(), (0, 1), value=1).flip(1).cumprod(1).flip(1).bool()
    is_padding = longer_PM == _padding(tokenizer, tokens_PL.shape[1])
    return ~(same_before & same_after & is_padding).any(1)


def _padding(tokenizer: Tokenizer, length: int) -> int:
    """Return the padding token: the token that an empty text has more often with more room."""
    (short_L,), (long_M,) = (tokenizer([""], context_length=room) for room in (length, length + 1))
    size = int(long_M.max()) + 1
    return int((long_M.bincount(minlength=size) - short_L.bincount(minlength=size)).argmax())


def _count(tokenizer: Tokenizer, prompt: str, length: int) -> str:
    def is_whole(room: int) -> bool:
        tokens_PL = tokenizer([prompt], context_length=room)
        return not _are_cut(tokenizer, [prompt], tokens_PL).item()

    most = _MOST_COUNTED * length
    if not is_whole(most):
        return f"more than {most}"
    return str(bisect_left(range(most), True, lo=length, key=is_whole))
