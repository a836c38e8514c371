"""The vision tower without work that no output depends on; the result is the same.

The image embedding of CLIP's vision transformers is the class token's last row. So in the last
block, only this row needs attention's output projection and the MLP. This saves 1/16 of the tower's
arithmetic. The same holds for timm's transformers that are read at their class token, such as EVA.

Tensor names end in their shape: B images, C H W pixels, L tokens, D width or embedding, M the first
tokens, beginning with the class token.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from so_clip.clip.engine.attention import ExplicitAttention
from so_clip.clip.engine.blocks import Memory, after_attention, before_attention, run_block
from so_clip.clip.engine.tower_blocks import (
    blocks_in,
    class_row,
    images_are_independent,
    reads_class_row,
)

# Values in the hidden layer of an MLP, the largest temporary, for one piece of a batch. On the CPU
# small temporaries stay in or near the cache. A GPU needs larger pieces to be busy.
_CPU_PIECE = 2**23
_GPU_PIECE = 2**26


def in_pieces(model: Any, images_BCHW: Tensor, values: int | None = None) -> tuple[Tensor, ...]:
    """Split a batch so that temporaries of the forward pass stay small.

    The backward pass keeps its activations of all pieces. A batch stays whole if its images depend
    on each other, as in batch normalisation in training mode.

    Args:
        model: an open_clip model.
        images_BCHW: the batch.
        values: the most values that a layer returns for one image; see `most_values`. None: a
            tower that is read at the class token is split, and others are not.
    """
    if is_read_at_class_token(model):
        tower = model.visual
        width = tower.transformer.resblocks[0].mlp.c_fc.out_features
        values = len(tower.positional_embedding) * width
    if values is None or not images_are_independent(model.visual):
        return (images_BCHW,)
    most = _CPU_PIECE if images_BCHW.device.type == "cpu" else _GPU_PIECE
    return images_BCHW.chunk(max(1, math.ceil(len(images_BCHW) * values / most)))


def most_values(model: Any, encode_one: Callable[[], Any]) -> int | None:
    """Return the most values that a layer of the image tower returns for one image.

    It encodes one image. None: the tower is read at the class token, and `in_pieces` knows its
    sizes.

    Args:
        model: an open_clip model.
        encode_one: encodes one image. It runs without gradients, counters and new random states.
    """
    if is_read_at_class_token(model):
        return None
    sizes = [1]

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        sizes.extend(leaf.numel() for leaf in tree_leaves(output) if isinstance(leaf, Tensor))

    layers = [module for module in model.visual.modules() if not [*module.children()]]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        first = next(model.parameters())
        devices = [] if first.device.type == "cpu" else [first.device]
        fake = first.fake_mode if isinstance(first, FakeTensor) else nullcontext()
        with torch.no_grad(), torch.random.fork_rng(devices), _disable_current_modes(), fake:
            encode_one()
    finally:
        for hook in hooks:
            hook.remove()
    return max(sizes)


def encode_image(model: Any, pixels_BCHW: Tensor, memory: Memory = "fast") -> Tensor:
    """Return image_BD like the model's own `encode_image`, not of unit length.

    open_clip's transformers with explicit attention, read at the class token, are computed here.
    Other towers (ResNets, timm, attentional or average pooling, CoCa) run their own code, with the
    memory modes of `so_clip.clip.engine.tower_blocks`.

    Args:
        model: an open_clip model.
        pixels_BCHW: normalised pixels.
        memory: fast | balanced | small; see `so_clip.clip.engine.blocks`.
    """
    visual = model.visual
    if not is_read_at_class_token(model):
        with blocks_in(visual, memory, class_row if reads_class_row(visual) else None):
            return model.encode_image(pixels_BCHW)
    x_BLD = visual._embeds(pixels_BCHW)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x_BLD = run_block(block, memory, _all_rows, x_BLD)
    # The last block computes little but keys and values. These are quick to compute, and large.
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
    query_BLD, key_BLD, value_BLD = before_attention(block, memory, x_BLD, block.attn.project)
    mixed_BMD = block.attn.attend(query_BLD[:, :count], key_BLD, value_BLD)
    return after_attention(block, memory, x_BLD[:, :count], mixed_BMD)
