"""The blocks of any tower, and their memory modes inside the tower's own forward pass.

`so_clip.clip.engine.blocks` computes the blocks of CLIP's own transformers step by step. Other
towers keep their own code here: timm's ViT, EVA, ViTamin, ConvNeXt, Swin and FastViT, ResNets,
transformers with other pooling, and Hugging Face's encoders. Only the `forward` of their blocks is
wrapped:

fast      as the tower itself.
balanced  the outputs of norms, activations and gates are computed again; see `lean_block`.
small     the whole block is computed again.

Tensor names end in their shape: B images, L tokens, D width.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from timm.models.eva import Eva, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block, VisionTransformer
from timm.models.vision_transformer_relpos import RelPosBlock, VisionTransformerRelPos
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from so_clip.clip.engine.blocks import Memory, run_block
from so_clip.clip.engine.lean_block import forwards, run_lean
from so_clip.clip.towers import block_lists

_PRE_NORM, _POST_NORM = (Block, EvaBlock, RelPosBlock), (EvaBlockPostNorm,)


def blocks_in(
    tower: nn.Module, memory: Memory, last_rows: Callable[..., Tensor] | None = None
) -> AbstractContextManager[None]:
    """Return a context in which a tower's blocks keep what `memory` selects.

    Args:
        tower: any module; its lists of blocks are found by their names.
        memory: fast | balanced | small.
        last_rows: computes the last block in its place; called with the block and its inputs.
    """
    memory = memory if refusal(tower, memory) is None else "fast"
    blocks = [block for blocks in block_lists(tower).values() for block in blocks]
    replaced = {
        block: partial(_run, block, block.forward, memory)
        for block in blocks
        if memory != "fast" or getattr(block, "around", None) is not None
    }
    if last_rows is not None:
        last = blocks[-1]
        # The last block computes little, so its whole forward pass can run twice.
        mode: Memory = "fast" if memory == "fast" else "small"
        replaced[last] = partial(_run, last, partial(last_rows, last), mode)
    return forwards(replaced)


def refusal(tower: nn.Module, memory: Memory) -> str | None:
    """Return why a tower keeps all activations although `memory` says otherwise, or None."""
    if memory == "fast":
        return None
    if not block_lists(tower):
        return f"{type(tower).__name__} has no list of blocks"
    if is_checkpointing(tower):
        return "the tower's own activation checkpointing is on"
    if not images_are_independent(tower):
        return "batch normalisation in training mode would update its statistics twice"
    return None


def is_checkpointing(tower: nn.Module) -> bool:
    """Return whether the activation checkpointing of open_clip, timm or Hugging Face is on."""
    names = ("grad_checkpointing", "gradient_checkpointing")
    return any(getattr(module, name, False) for module in tower.modules() for name in names)


def images_are_independent(tower: nn.Module) -> bool:
    """Return whether no image changes the embedding of another one of its batch."""
    return not any(isinstance(module, _BatchNorm) and module.training for module in tower.modules())


def _run(
    block: nn.Module,
    forward: Callable[..., Any],
    memory: Memory,
    *inputs: Any,
    **options: Any,
) -> Any:
    def run(block: Any, memory: Memory, *inputs: Any) -> Any:
        if memory == "balanced":
            return run_lean(block, forward, *inputs, **options)
        return forward(*inputs, **options)

    return run_block(block, memory, run, *inputs)


def reads_class_row(visual: Any) -> bool:
    """Return whether a timm tower's output depends on its last block's class row alone."""
    trunk: Any = getattr(visual, "trunk", None)
    if type(trunk) not in (VisionTransformer, Eva, VisionTransformerRelPos):
        return False
    last = trunk.blocks[-1]
    return (
        trunk.global_pool == "token"
        and getattr(trunk, "attn_pool", None) is None
        and type(last) in (*_PRE_NORM, *_POST_NORM)
        and isinstance(getattr(last.attn, "proj", None), nn.Module)
        and not is_checkpointing(trunk)
    )


def class_row(block: Any, x_BLD: Tensor, **options: Any) -> Tensor:
    """Return the first row after a block of timm's, [B, 1, D], for its input x_BLD.

    Attention needs the keys and values of all rows. Its output projection and the MLP work on each
    row alone, so they get the first row.
    """
    project = block.attn.proj.forward
    first_row = forwards({block.attn.proj: lambda mixed_BLD: project(mixed_BLD[:, :1])})
    x_B1D = x_BLD[:, :1]
    if type(block) in _POST_NORM:
        with first_row:
            y_B1D = block.attn(x_BLD, **options)
        x_B1D = x_B1D + block.drop_path1(block.norm1(y_B1D))
        return x_B1D + block.drop_path2(block.norm2(block.mlp(x_B1D)))
    with first_row:
        y_B1D = block.attn(block.norm1(x_BLD), **options)
    x_B1D = x_B1D + block.drop_path1(_scaled(block, 1, y_B1D))
    return x_B1D + block.drop_path2(_scaled(block, 2, block.mlp(block.norm2(x_B1D))))


def _scaled(block: Any, number: int, y: Tensor) -> Tensor:
    if not isinstance(block, EvaBlock):
        return getattr(block, f"ls{number}")(y)
    gamma = getattr(block, f"gamma_{number}")
    return y if gamma is None else gamma * y
