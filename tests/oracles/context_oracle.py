"""CoOp and CoCoOp restated: whole prompts through open_clip's own tower, vectors put in by hand."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def class_embeddings(
    model: Any,
    tokenize: Callable[[list[str]], Tensor],
    names: Sequence[str],
    context_MW: Tensor,
    end: str = ".",
) -> Tensor:
    """Unit-length class_KD of "X X X <name><end>" with the context in place of the Xs.

    Args:
        model: open_clip's own, as loaded.
        tokenize: texts -> token ids [texts, context length].
        names: of the classes.
        context_MW: the context.
        end: what follows a name.
    """
    length = len(context_MW)
    tokens_KL = tokenize([f"{'X ' * length}{name}{end}" for name in names])
    vectors_KLW = model.token_embedding(tokens_KL).detach()
    start, rest = vectors_KLW[:, :1], vectors_KLW[:, 1 + length :]
    context = context_MW.unsqueeze(0).expand(len(names), -1, -1)
    own = model.token_embedding
    model.token_embedding = _Given(torch.cat([start, context, rest], dim=1))
    try:
        return F.normalize(model.encode_text(tokens_KL), dim=-1)
    finally:
        model.token_embedding = own


class _Given(nn.Module):
    """Returns the same vectors whatever the tokens are."""

    def __init__(self, vectors_KLW: Tensor) -> None:
        super().__init__()
        self.vectors_KLW = vectors_KLW

    def forward(self, tokens_KL: Tensor) -> Tensor:
        return self.vectors_KLW


def meta_net(image_D: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """CoCoOp's shift of the context: two linear layers, a ReLU between them."""
    first_HD, first_H, second_WH, second_W = parameters
    return second_WH @ (first_HD @ image_D + first_H).clamp(min=0) + second_W
