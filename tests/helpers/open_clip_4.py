"""A stand-in for open_clip 4: its classes, with an attention of their own, in open_clip 3.

Written from the interface of open_clip's main branch. There, blocks and poolers have an `Attention`
in the place of nn.MultiheadAttention. It is called with other names and returns a tensor. The first
weights are those of open_clip 3 for the same seed, so both can be compared.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import open_clip.transformer
import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import AttentionalPooler, ResidualAttentionBlock
from torch import Tensor, nn


class Attention(nn.Module):
    """open_clip 4's attention with the parameters of an nn.MultiheadAttention.

    Args:
        source: the owner of the parameters.
        norms: whether query and key are normalised in each head.
    """

    def __init__(self, source: nn.MultiheadAttention, norms: bool = False) -> None:
        super().__init__()
        self.num_heads, width = source.num_heads, source.embed_dim
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            self.register_parameter(name, getattr(source, name))
        self.register_parameter("in_proj_bias", source.in_proj_bias)
        self.ln_q = nn.LayerNorm(width // source.num_heads) if norms else nn.Identity()
        self.ln_k = nn.LayerNorm(width // source.num_heads) if norms else nn.Identity()
        self.logit_scale = self.head_scale = None
        self.attn_drop, self.ln_inner = nn.Dropout(0.0), nn.Identity()
        self.out_proj = nn.Linear(width, width, device="meta")
        self.out_proj.weight, self.out_proj.bias = source.out_proj.weight, source.out_proj.bias
        self.out_drop = nn.Dropout(0.0)

    def forward(
        self,
        x: Tensor,
        k_x: Tensor | None = None,
        v_x: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        inputs = (x, x if k_x is None else k_x, x if v_x is None else v_x)
        if self.in_proj_weight is None:
            weights = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
        else:
            weights = [*self.in_proj_weight.chunk(3)]
        projected = zip(inputs, weights, self.in_proj_bias.chunk(3), strict=True)
        q, k, v = (
            F.linear(*each).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for each in projected
        )
        if attn_mask is not None and attn_mask.ndim == 3:
            attn_mask = attn_mask.unflatten(0, (len(x), self.num_heads))
        mixed = F.scaled_dot_product_attention(
            self.ln_q(q), self.ln_k(k), v, attn_mask=attn_mask, dropout_p=0.0
        )
        return self.out_drop(self.out_proj(self.ln_inner(mixed.transpose(1, 2).flatten(2))))


class Block(ResidualAttentionBlock):
    """open_clip 4's residual block."""

    norms = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.attn = Attention(self.attn, self.norms)

    def attention(
        self,
        q_x: Tensor,
        k_x: Tensor | None = None,
        v_x: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        k_x, v_x = q_x if k_x is None else k_x, q_x if v_x is None else v_x
        mask = None if attn_mask is None else attn_mask.to(q_x.dtype)
        return self.attn(q_x, k_x=k_x, v_x=v_x, attn_mask=mask)


class NormedBlock(Block):
    """A block whose attention normalises query and key."""

    norms = True


class Pooler(AttentionalPooler):
    """open_clip 4's attentional pooler."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.attn = Attention(self.attn)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln_k(x)
        query = self.ln_q(self.query).unsqueeze(0).expand(len(x), -1, -1)
        return self.attn(query, k_x=x, v_x=x)


@contextmanager
def open_clip_4(block: type[Block] = Block) -> Iterator[None]:
    """Build models of open_clip 4 in this context, and let so_clip recognise them."""
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr(open_clip.transformer, "ResidualAttentionBlock", block)
        patch.setattr(open_clip.transformer, "AttentionalPooler", Pooler)
        yield
