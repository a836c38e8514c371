"""Images through the vision tower for what they must cost, with the same result.

CLIP's vision transformers are read at the class token. So in the last block, only that token's row
needs the projection of attention and the MLP: of the tower's arithmetic, 1/16 less.

Tensor names end in their shape: B images, C H W pixels, L tokens, D width or embedding, M some of
the tokens, first the class token.
"""

import math
from typing import Any

from torch import Tensor

from so_clip.clip.attention import ExplicitAttention
from so_clip.clip.blocks import Memory, after_attention, before_attention, run_block

# Of an MLP's hidden layer, its largest. Small temporaries are handed on from one operation to the
# next, in the processor's cache or near it; a GPU wants enough work at once instead.
_VALUES_AT_ONCE = {"cpu": 2**23}
_VALUES_AT_ONCE_ELSEWHERE = 2**26


def in_pieces(model: Any, images_BCHW: Tensor) -> tuple[Tensor, ...]:
    """Return a batch in parts so small that what is made and dropped on the way is small too.

    What a backward pass needs is kept of all parts. Only where the tower is run by `encode_image`.
    """
    if not is_read_at_class_token(model):
        return (images_BCHW,)
    tower = model.visual
    values = len(tower.positional_embedding) * tower.transformer.resblocks[0].mlp.c_fc.out_features
    most = _VALUES_AT_ONCE.get(images_BCHW.device.type, _VALUES_AT_ONCE_ELSEWHERE)
    return images_BCHW.chunk(max(1, math.ceil(len(images_BCHW) * values / most)))


def encode_image(model: Any, pixels_BCHW: Tensor, memory: Memory = "fast") -> Tensor:
    """Return image_BD as the model's `encode_image` would, not of unit length.

    Models that are read elsewhere, or are not open_clip's own transformers with explicit attention
    (ResNets, timm, attentional or average pooling, CoCa), run their own `encode_image`.

    Args:
        model: an open_clip model.
        pixels_BCHW: normalised.
        memory: what is kept for the backward pass; see `so_clip.clip.blocks`.
    """
    if not is_read_at_class_token(model):
        return model.encode_image(pixels_BCHW)
    visual = model.visual
    x_BLD = visual._embeds(pixels_BCHW)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x_BLD = run_block(block, memory, _all_rows, x_BLD)
    # Keys and values are nearly all there is to the last block: quickly made, and large to keep.
    x_BD = run_block(last, "fast" if memory == "fast" else "small", _class_row, x_BLD)
    x_BD = visual.ln_post(x_BD)
    return x_BD if visual.proj is None else x_BD @ visual.proj


def is_read_at_class_token(model: Any) -> bool:
    """Whether nothing but the class token's last row makes the image's embedding."""
    from open_clip.model import CLIP, CustomTextCLIP
    from open_clip.transformer import ResidualAttentionBlock, Transformer, VisionTransformer

    visual = model.visual
    return (
        type(model) in (CLIP, CustomTextCLIP)
        and type(visual) is VisionTransformer
        and visual.pool_type == "tok"
        and visual.attn_pool is None
        and not visual.output_tokens
        and type(visual.transformer) is Transformer
        and not visual.transformer.grad_checkpointing
        and all(
            type(block) is ResidualAttentionBlock and isinstance(block.attn, ExplicitAttention)
            for block in visual.transformer.resblocks
        )
    )


def _all_rows(block: Any, memory: Memory, x_BLD: Tensor) -> Tensor:
    return _rows(block, memory, x_BLD, x_BLD.shape[1])


def _class_row(block: Any, memory: Memory, x_BLD: Tensor) -> Tensor:
    return _rows(block, memory, x_BLD, 1)[:, 0]


def _rows(block: Any, memory: Memory, x_BLD: Tensor, count: int) -> Tensor:
    """Return the first rows after a residual block, of x_BLD before it."""
    query_BLD, key_BLD, value_BLD = before_attention(block, memory, x_BLD)
    mixed_BMD = block.attn.attend(query_BLD[:, :count], key_BLD, value_BLD)
    return after_attention(block, memory, x_BLD[:, :count], mixed_BMD)
