"""The vision tower without work that no output depends on; the result is the same.

The image embedding of CLIP's vision transformers is the class token's last row. So in the last
block, only this row needs attention's output projection and the MLP. This saves 1/16 of the tower's
arithmetic.

Tensor names end in their shape: B images, C H W pixels, L tokens, D width or embedding, M the first
tokens, beginning with the class token.
"""

import math
from typing import Any

from torch import Tensor

from so_clip.clip.attention import ExplicitAttention
from so_clip.clip.blocks import Memory, after_attention, before_attention, run_block

# Values in the hidden layer of an MLP, the largest temporary, for one piece of a batch. On the CPU
# small temporaries stay in or near the cache. A GPU needs larger pieces to be busy.
_CPU_PIECE = 2**23
_GPU_PIECE = 2**26


def in_pieces(model: Any, images_BCHW: Tensor) -> tuple[Tensor, ...]:
    """Split a batch so that temporaries of the forward pass stay small.

    The backward pass keeps its activations of all pieces. A batch stays whole if `encode_image`
    calls the model's own tower.
    """
    if not is_read_at_class_token(model):
        return (images_BCHW,)
    tower = model.visual
    values = len(tower.positional_embedding) * tower.transformer.resblocks[0].mlp.c_fc.out_features
    most = _CPU_PIECE if images_BCHW.device.type == "cpu" else _GPU_PIECE
    return images_BCHW.chunk(max(1, math.ceil(len(images_BCHW) * values / most)))


def encode_image(model: Any, pixels_BCHW: Tensor, memory: Memory = "fast") -> Tensor:
    """Return image_BD like the model's own `encode_image`, not of unit length.

    Models with another pooling than the class token, and models other than open_clip's transformers
    with explicit attention (ResNets, timm, attentional or average pooling, CoCa), run their own
    `encode_image`.

    Args:
        model: an open_clip model.
        pixels_BCHW: normalised pixels.
        memory: fast | balanced | small; see `so_clip.clip.blocks`.
    """
    if not is_read_at_class_token(model):
        return model.encode_image(pixels_BCHW)
    visual = model.visual
    x_BLD = visual._embeds(pixels_BCHW)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x_BLD = run_block(block, memory, _all_rows, x_BLD)
    # The last block computes little but keys and values, which are quick to compute and large.
    x_BD = run_block(last, "fast" if memory == "fast" else "small", _class_row, x_BLD)
    x_BD = visual.ln_post(x_BD)
    return x_BD if visual.proj is None else x_BD @ visual.proj


def is_read_at_class_token(model: Any) -> bool:
    """Return whether the image embedding depends on the class token's last row alone."""
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
    """Return the first `count` rows after a residual block, for the input x_BLD."""
    query_BLD, key_BLD, value_BLD = before_attention(block, memory, x_BLD)
    mixed_BMD = block.attn.attend(query_BLD[:, :count], key_BLD, value_BLD)
    return after_attention(block, memory, x_BLD[:, :count], mixed_BMD)
