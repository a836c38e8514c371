"""Prompts with learned vectors before the class's name, and the token embedding that has them.

Learned vectors have negative token ids. No tokenizer uses negative ids. CLIP finds the end of a
prompt by its largest id, and Hugging Face's towers mask the padding's id; a negative id is neither.
So prompts stay token sequences, any text tower reads them with its own code, and towers that can
share prefixes compute shared parts once.

Tensor names end in their shape: P prompts, L tokens, N any tokens, M vectors of the context, W
width of the text tower.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from so_clip.clip.classifier import Classifier
from so_clip.clip.prompt_layout import PromptLayout, prompt_layout
from so_clip.clip.towers import text_tower
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
        # NLLB's embedding multiplies its vectors by a constant. Learned vectors need none.
        self.scale = float(getattr(frozen, "embed_scale", 1.0))
        self.context = nn.Parameter(context_MW)
        self.meta_net = meta_net

    def forward(self, tokens_N: Tensor, context_MW: Tensor | None = None) -> Tensor:
        """Return vectors [..., W] for ids [...]; `context_MW` replaces the learned context."""
        context_MW = self.context if context_MW is None else context_MW
        learned_NW = F.embedding((-1 - tokens_N).clamp(min=0), context_MW)
        known_NW = F.embedding(tokens_N.clamp(min=0), self.weight)
        if self.scale != 1.0:
            known_NW = known_NW * self.scale
        return torch.where((tokens_N < 0).unsqueeze(-1), learned_NW, known_NW)


def embedding_owner(text: Any) -> tuple[Any, str]:
    """Return the module that has a text tower's token embedding, and the embedding's name there.

    The name is empty if the tower has no such embedding.
    """
    if isinstance(getattr(text, "token_embedding", None), nn.Embedding):
        return text, "token_embedding"
    inner: Any = getattr(text, "transformer", None)  # an encoder of Hugging Face
    if hasattr(inner, "get_input_embeddings"):
        embedding = inner.get_input_embeddings()
        for owner in inner.modules():
            for name, child in owner.named_children():
                if child is embedding:
                    return owner, name
    return text, ""


def frozen_embedding(classifier: Classifier) -> nn.Embedding:
    """Return the text tower's token embedding.

    Raises:
        InputError: learned vectors cannot be added to it.
    """
    owner, name = embedding_owner(text_tower(classifier.backbone.model))
    embedding = getattr(owner, name) if name else None
    is_plain = type(embedding) is nn.Embedding or hasattr(embedding, "embed_scale")
    if not isinstance(embedding, nn.Embedding) or not is_plain or embedding.max_norm is not None:
        raise InputError(
            f"the text encoder of {classifier.backbone.description} cannot be given learned "
            "vectors, or has them already: it has no plain token embedding. Take another model, "
            "such as backbone=vit_b16."
        )
    return embedding


def context_embedding(classifier: Classifier) -> ContextEmbedding:
    """Return the token embedding with the context that CoOp has added."""
    owner, name = embedding_owner(text_tower(classifier.backbone.model))
    embedding = getattr(owner, name)
    assert isinstance(embedding, ContextEmbedding)
    return embedding


def layout_of(classifier: Classifier) -> PromptLayout:
    """Return the places of a prompt's tokens.

    Raises:
        InputError: the tokenizer pads at the start, or ends with a class token.
    """
    backbone = classifier.backbone
    layout = prompt_layout(backbone.tokenizer)
    if layout is None:
        raise InputError(
            f"the tokenizer of {backbone.description} does not put a prompt's text before its "
            "padding, so learned vectors have no place in it. Take another model, such as "
            "backbone=vit_b16."
        )
    return layout


def split_at_names(classifier: Classifier, tokens_PL: Tensor) -> list[tuple[list[int], list[int]]]:
    """Split each prompt's text into the tokens before the class's name and those from it on.

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
    layout, backbone = layout_of(classifier), classifier.backbone
    before = backbone.tokenize([template.partition("{}")[0]])
    opening = layout.text_in(before[0].tolist())
    prompts = []
    for prompt in tokens_PL.tolist():
        text = layout.text_in(prompt)
        if text[: len(opening)] != opening:
            raise InputError(
                f"template={template!r}: the words before {{}} run into the name in "
                f"{backbone.text_of(text)!r}. End them with a space."
            )
        prompts.append((opening, text[len(opening) :]))
    return prompts


def with_context(
    classifier: Classifier, prompts: list[tuple[list[int], list[int]]], length: int
) -> Tensor:
    """Return tokens_PL: `length` learned vectors in place of the words before the name.

    Args:
        prompts: of `split_at_names`.

    Raises:
        InputError: a prompt is too long for the text tower.
    """
    layout, backbone = layout_of(classifier), classifier.backbone
    rows = []
    for _, rest in prompts:
        text = [*range(-1, -1 - length, -1), *rest]
        if len(text) > layout.room:
            tokens = len(text) + layout.length - layout.room
            raise InputError(
                f"{length} learned vectors and {backbone.text_of(rest)!r} take {tokens} "
                f"tokens, but the text encoder reads {layout.length}. Shorten the class name, or "
                "take fewer vectors by adapter.length= or adapter.words=."
            )
        rows.append(layout.prompt(text))
    return torch.tensor(rows)
