"""Learned vectors as tokens of prompts, and prompts that have them before a class's name.

Such tokens have ids of their own, which are negative: no tokenizer gives them, and none is the
largest of a prompt, by which CLIP knows its end. So prompts stay tokens, and what they have in
common is computed once.

Tensor names end in their shape: P prompts, L tokens, N any tokens, M vectors of the context, W
width of the text tower.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.classifier import Classifier
from so_clip.clip.packed_text import prompts_to_end
from so_clip.errors import InputError

REFUSAL = (
    "the text encoder of {} cannot be given learned vectors, or has them already: it must be "
    "open_clip's own, read at the end token. Take one such as backbone=vit_b16."
)


class ContextEmbedding(nn.Embedding):
    """A token embedding as it was, and learned vectors for the ids -1 to -M.

    Args:
        frozen: its weight is taken over, not copied, and keeps its name.
        context_MW: starting values.
        meta_net: image_BD -> what is added to the context for each image; None: nothing is.
    """

    def __init__(
        self, frozen: nn.Embedding, context_MW: Tensor, meta_net: nn.Module | None = None
    ) -> None:
        super().__init__(frozen.num_embeddings, frozen.embedding_dim, device="meta")
        self.weight = frozen.weight
        self.context = nn.Parameter(context_MW)
        self.meta_net = meta_net

    def forward(self, tokens_N: Tensor, context_MW: Tensor | None = None) -> Tensor:
        """Return vectors [..., W] for ids [...], the context's or those that take its place."""
        context_MW = self.context if context_MW is None else context_MW
        learned_NW = F.embedding((-1 - tokens_N).clamp(min=0), context_MW)
        known_NW = F.embedding(tokens_N.clamp(min=0), self.weight)
        return torch.where((tokens_N < 0).unsqueeze(-1), learned_NW, known_NW)


def text_tower(classifier: Classifier) -> Any:
    """Return the module that has the text tower's parts: the model, or one of its own."""
    model = classifier.backbone.model
    return getattr(model, "text", model)


def context_embedding(classifier: Classifier) -> ContextEmbedding:
    """Return the token embedding with the context, which CoOp has put there."""
    embedding = text_tower(classifier).token_embedding
    assert isinstance(embedding, ContextEmbedding)
    return embedding


def to_end(classifier: Classifier, tokens_PL: Tensor) -> list[list[int]]:
    """Return prompts up to their end tokens.

    Raises:
        InputError: the text tower is none that learned vectors can be given to.
    """
    prompts = prompts_to_end(classifier.backbone.model, tokens_PL)
    if prompts is None:
        raise InputError(REFUSAL.format(classifier.backbone.description))
    return prompts


def prompts_by_name(classifier: Classifier, tokens_PL: Tensor) -> list[tuple[list[int], list[int]]]:
    """Return of each prompt what stands before the class's name, and what begins with it.

    What stands before it is what the template has there: what prompts have in common may be longer.
    """
    if len(classifier.templates) != 1:
        most = max(classifier.prompt_counts)
        kind = "template=ensemble or a file of templates"
        if not classifier.templates:
            kind = "template=FILE with class descriptions"
        raise InputError(
            f"{kind}: a class has {most} prompts here, and a context is learned for one, before "
            "the class's name. Take template=plain or template=specific."
        )
    (template,) = classifier.templates
    before = classifier.backbone.tokenize([template.partition("{}")[0]])
    opening = to_end(classifier, before)[0][:-1]
    prompts = []
    for prompt in to_end(classifier, tokens_PL):
        if prompt[: len(opening)] != opening:
            raise InputError(
                f"template={template!r}: what stands before {{}} runs into the name in "
                f"{classifier.backbone.text_of(prompt[1:-1])!r}. End it with a space."
            )
        prompts.append((opening, prompt[len(opening) :]))
    return prompts


def rewritten(
    classifier: Classifier, prompts: list[tuple[list[int], list[int]]], length: int
) -> Tensor:
    """Return tokens_PL with so many learned vectors after the start token, then the names."""
    backbone = classifier.backbone
    tokens_PL = torch.zeros(len(prompts), backbone.context_length, dtype=torch.int64)
    for tokens_L, (opening, rest) in zip(tokens_PL, prompts, strict=True):
        prompt = [opening[0], *range(-1, -1 - length, -1), *rest]
        if len(prompt) > len(tokens_L):
            raise InputError(
                f"{length} learned vectors and {backbone.text_of(rest[:-1])!r} take {len(prompt)} "
                f"tokens, but the text encoder reads {len(tokens_L)}. Shorten the class name, or "
                "take fewer vectors by adapter.length= or adapter.words=."
            )
        tokens_L[: len(prompt)] = torch.tensor(prompt)
    return tokens_PL


def without_padding(prompt: list[int]) -> list[int]:
    """Return a prompt up to its end token, which is the last that is not 0."""
    last = max(place for place, token in enumerate(prompt) if token)
    return prompt[: last + 1]
