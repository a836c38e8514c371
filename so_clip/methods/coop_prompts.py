"""Prompts with learned vectors before the class's name, and the token embedding that has them.

Learned vectors have negative token ids. No tokenizer uses negative ids. CLIP finds the end of a
prompt by its largest id, and a negative id is never the largest. So prompts stay token sequences,
and shared parts are computed once.

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


class ContextEmbedding(nn.Embedding):
    """A frozen token embedding, with learned vectors for the ids -1 to -M.

    Args:
        frozen: its weight is shared, not copied, and keeps its name.
        context_MW: first values of the learned vectors.
        meta_net: image_BD -> shift_BW of the context for each image; None for CoOp.
    """

    def __init__(
        self, frozen: nn.Embedding, context_MW: Tensor, meta_net: nn.Module | None = None
    ) -> None:
        super().__init__(frozen.num_embeddings, frozen.embedding_dim, device="meta")
        self.weight = frozen.weight
        self.context = nn.Parameter(context_MW)
        self.meta_net = meta_net

    def forward(self, tokens_N: Tensor, context_MW: Tensor | None = None) -> Tensor:
        """Return vectors [..., W] for ids [...]; `context_MW` replaces the learned context."""
        context_MW = self.context if context_MW is None else context_MW
        learned_NW = F.embedding((-1 - tokens_N).clamp(min=0), context_MW)
        known_NW = F.embedding(tokens_N.clamp(min=0), self.weight)
        return torch.where((tokens_N < 0).unsqueeze(-1), learned_NW, known_NW)


def text_tower(classifier: Classifier) -> Any:
    """Return the module that holds the text tower: the model, or the model's `text`."""
    model = classifier.backbone.model
    return getattr(model, "text", model)


def context_embedding(classifier: Classifier) -> ContextEmbedding:
    """Return the token embedding with the context that CoOp has added."""
    embedding = text_tower(classifier).token_embedding
    assert isinstance(embedding, ContextEmbedding)
    return embedding


def refusal(classifier: Classifier) -> InputError:
    """Return the error for a text tower that learned vectors cannot be added to."""
    return InputError(
        f"the text encoder of {classifier.backbone.description} cannot be given learned vectors, "
        "or has them already: it must be open_clip's own, read at the end token. Take one such as "
        "backbone=vit_b16."
    )


def trimmed(classifier: Classifier, tokens_PL: Tensor) -> list[list[int]]:
    """Return prompts up to their end tokens.

    Raises:
        InputError: learned vectors cannot be added to the text tower.
    """
    prompts = prompts_to_end(classifier.backbone.model, tokens_PL)
    if prompts is None:
        raise refusal(classifier)
    return prompts


def split_at_names(classifier: Classifier, tokens_PL: Tensor) -> list[tuple[list[int], list[int]]]:
    """Split each prompt into the tokens before the class's name and the tokens from it on.

    The template decides where the name starts. The prompts' common beginning could be longer.

    Raises:
        InputError: a class has several prompts, or the template runs into the name.
    """
    if len(classifier.templates) != 1:
        most = max(classifier.prompt_counts)
        kind = "template=ensemble or a file of templates"
        if not classifier.templates:
            kind = "template=FILE with class descriptions"
        raise InputError(
            f"{kind}: a class has {most} prompts here, but a context is learned for one prompt per "
            "class, before the class's name. Take template=plain or template=specific."
        )
    (template,) = classifier.templates
    before = classifier.backbone.tokenize([template.partition("{}")[0]])
    opening = trimmed(classifier, before)[0][:-1]
    prompts = []
    for prompt in trimmed(classifier, tokens_PL):
        if prompt[: len(opening)] != opening:
            raise InputError(
                f"template={template!r}: the words before {{}} run into the name in "
                f"{classifier.backbone.text_of(prompt[1:-1])!r}. End them with a space."
            )
        prompts.append((opening, prompt[len(opening) :]))
    return prompts


def with_context(
    classifier: Classifier, prompts: list[tuple[list[int], list[int]]], length: int
) -> Tensor:
    """Return tokens_PL: the start token, `length` learned vectors, then the name and the rest.

    Args:
        prompts: of `split_at_names`.

    Raises:
        InputError: a prompt is too long for the text tower.
    """
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
