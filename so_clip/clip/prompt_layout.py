"""The order of tokens in a tokenizer's prompts: start tokens, text, end tokens, padding."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from so_clip.clip.whole_prompts import Tokenizer

_WORD = "a"


@dataclass(frozen=True)
class PromptLayout:
    """The tokens of a prompt around its text.

    Attributes:
        start: tokens before the text, such as CLIP's start token; SigLIP has none.
        after: what follows an empty text up to the tokenizer's length: end tokens and padding.
        ends: how many of these every prompt has.
    """

    start: tuple[int, ...]
    after: tuple[int, ...]
    ends: int

    @property
    def length(self) -> int:
        """The tokens of a whole prompt with its padding."""
        return len(self.start) + len(self.after)

    @property
    def room(self) -> int:
        """The most tokens of a text."""
        return len(self.after) - self.ends

    def text_in(self, prompt: Sequence[int]) -> list[int]:
        """Return the tokens of the text in a whole prompt."""
        rest = list(prompt)[len(self.start) :]
        count = next(n for n in range(len(rest) + 1) if _begins(self.after, rest[n:]))
        return rest[:count]

    def prompt(self, text: Sequence[int]) -> list[int]:
        """Return the whole prompt of a text of at most `room` tokens."""
        return [*self.start, *text, *self.after[: len(self.after) - len(text)]]


def prompt_layout(tokenizer: Tokenizer) -> PromptLayout | None:
    """Return a tokenizer's layout; None if padding comes first, or a class token after it."""
    rows: Tensor = tokenizer(["", _WORD])
    empty, one = rows.tolist()
    length = len(empty)
    (long,) = tokenizer([f"{_WORD} " * (2 * length)]).tolist()
    (longer,) = tokenizer([f"{_WORD} " * (2 * length)], context_length=length + 1).tolist()
    start = _common(empty, one)
    layout = PromptLayout(
        tuple(empty[:start]), tuple(empty[start:]), length - _common(long, longer)
    )
    fits = long[:start] == empty[:start] and 0 < len(layout.text_in(one)) <= layout.room
    return layout if fits else None


def _begins(whole: Sequence[int], part: Sequence[int]) -> bool:
    return list(whole[: len(part)]) == list(part)


def _common(first: list[int], second: list[int]) -> int:
    """Return the number of equal tokens at the beginning of both."""
    pairs = zip(first, second, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
