"""Rows of a padded batch without their padding, for BERT and its relatives.

All layers but attention compute each token alone. Here they get the T tokens of a batch in one row,
and attention alone sees sentences padded to the same length. In the last block, only the first
token of each sentence is computed after attention, because poolers and classifiers read no other.
The results are those of the padded batch up to rounding. Sentences of one batch have very different
lengths, so this saves much of the time of a step.

Tensor names end in their shape: B sentences of a batch, L tokens of the longest, T tokens of all, D
width, H heads, E width of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from so_clip.clip.engine.blocks import Memory, run_block
from so_clip.clip.engine.lean_block import forwards, run_lean

# Kinds of models whose blocks have BERT's parts, and whose classifiers read the first token.
_KINDS = ("bert", "roberta", "xlm-roberta", "camembert", "electra")


class Packing(NamedTuple):
    """The places of the tokens of a batch.

    Attributes:
        place_T: of each token in the padded batch, [B · L].
        first_B: of each sentence's first token among the T.
        mask_B11L: True for tokens.
    """

    place_T: Tensor
    first_B: Tensor
    mask_B11L: Tensor


def can_pack(model: Any) -> bool:
    """Return whether `packing` works for a model of transformers."""
    kind = model.config.model_type in _KINDS
    return kind and not getattr(model.config, "add_cross_attention", False)


def pack(mask_BL: Tensor) -> Packing:
    """Return the places of a batch's tokens; each row begins with its tokens.

    A fake batch has no values, so it has no padding.
    """
    rows, length = mask_BL.shape
    if isinstance(mask_BL, FakeTensor):
        place_T = torch.arange(rows * length, device=mask_BL.device)
        first_B = place_T[::length]
    else:
        place_T = mask_BL.flatten().nonzero().squeeze(1)
        count_B = mask_BL.sum(dim=1)
        first_B = count_B.cumsum(0) - count_B
    return Packing(place_T, first_B, mask_BL.bool()[:, None, None])


def packed_inputs(model: Any, inputs: dict[str, Tensor], packing: Packing) -> dict[str, Tensor]:
    """Return the arguments of the model's forward pass for the tokens in one row."""
    places: Any = model.base_model.embeddings.position_embeddings
    first = 0 if places.padding_idx is None else places.padding_idx + 1
    length = packing.mask_B11L.shape[-1]
    tokens = {
        name: value_BL.flatten()[packing.place_T][None]
        for name, value_BL in inputs.items()
        if name != "attention_mask"
    }
    return tokens | {"position_ids": (packing.place_T % length + first)[None]}


@contextmanager
def packed_encoder(model: Any, memory: Memory, packing: Packing) -> Iterator[None]:
    """Let the model's encoder take the tokens in one row, and return first tokens alone.

    Args:
        model: one that `can_pack`; its forward pass gets `packed_inputs`.
        memory: fast | balanced | small.
        packing: of the batch.
    """
    from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions as Output

    encoder = model.base_model.encoder

    def forward(hidden_1TD: Tensor, **_options: Any) -> Any:
        last = len(encoder.layer) - 1
        for i, block in enumerate(encoder.layer):
            run = partial(_run, packing=packing, is_last=i == last)
            hidden_1TD = run_block(block, memory, run, hidden_1TD)
        return Output(last_hidden_state=hidden_1TD.transpose(0, 1))

    with forwards({encoder: forward}):
        yield


def _run(
    block: nn.Module, memory: Memory, hidden_1TD: Tensor, packing: Packing, is_last: bool
) -> Tensor:
    attention: Any = block.attention
    replaced: dict[nn.Module, Any] = {attention.self: partial(_attend, attention.self, packing)}
    if is_last:
        project = attention.output.forward
        replaced[attention.output] = lambda mixed_1TD, hidden_1TD: project(
            mixed_1TD[:, packing.first_B], hidden_1TD[:, packing.first_B]
        )
    with forwards(replaced):
        if memory == "balanced":
            output = run_lean(block, block.forward, hidden_1TD)
        else:
            output = block(hidden_1TD)
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result


def _attend(
    attention: Any, packing: Packing, hidden_1TD: Tensor, *_: Any, **_options: Any
) -> tuple[Tensor, None]:
    """Return BERT's self-attention of each sentence, without its output projection."""
    mask_B11L = packing.mask_B11L
    heads = attention.num_attention_heads
    rows, length = mask_B11L.shape[0], mask_B11L.shape[-1]

    def split(projected_1TD: Tensor) -> Tensor:
        value_TD = projected_1TD[0]
        padded = value_TD.new_zeros(rows * length, value_TD.shape[1])
        padded = padded.index_copy(0, packing.place_T, value_TD)
        return padded.view(rows, length, heads, -1).transpose(1, 2)

    query_BHLE, key_BHLE, value_BHLE = (
        split(project(hidden_1TD)) for project in (attention.query, attention.key, attention.value)
    )
    scores_BHLL = query_BHLE @ key_BHLE.mT * attention.attention_head_size**-0.5
    scores_BHLL = scores_BHLL.masked_fill(~mask_B11L, torch.finfo(scores_BHLL.dtype).min)
    share_BHLL = attention.dropout(scores_BHLL.softmax(dim=-1))
    mixed_BLD = (share_BHLL @ value_BHLE).transpose(1, 2).flatten(2)
    return mixed_BLD.flatten(0, 1)[packing.place_T][None], None
