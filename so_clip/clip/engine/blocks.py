"""A residual attention block of both towers, and the activations it keeps for the backward pass.

In units of the residual stream [tokens, D], a block of open_clip keeps 16: the inputs of both norms
1 + 1, of the linear layers 1 + 1 + 4 (out_proj's input is attention's output), query, key and value
3, attention's output 1 and GELU's input 4. The option `memory` selects what is kept:

fast      all, except the inputs of the text tower's attention (see `packed_text`).
balanced  10: no output of a norm or of an activation. No matrix product is computed twice, except
          in the vision tower's last block, which computes little (see `image_tower`).
small     1: the block's input. The whole block is computed twice.

The results are equal up to rounding.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from so_clip.clip.engine.random_recompute import draws_random, run_twice
from so_clip.clip.engine.recompute import Output, in_matmul_precision, recomputed

Memory = Literal["fast", "balanced", "small"]
MEMORY_MODES: tuple[Memory, ...] = get_args(Memory)


def run_block(block: Any, memory: Memory, run: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return run(block, memory, *inputs), and keep for the backward pass what `memory` selects.

    A block's attribute `around`, if it is set, gets the call; see so_clip.forecast.repeats.
    """
    around = getattr(block, "around", None)
    call = partial(_run_block, block, memory, run, *inputs)
    return call() if around is None else around(call)


def _run_block(block: Any, memory: Memory, run: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return run(block, "fast", *inputs)  # so all modes agree to the last bit
    if memory != "small":
        return run(block, memory, *inputs)
    return run_twice(run, block, "fast", *inputs, random=draws_random(block))


def before_attention(
    block: Any, memory: Memory, x: Tensor, project: Callable[[Tensor], Output]
) -> Output:
    """Return project(norm of x), for rows x [..., D] of the residual stream.

    Args:
        project: a method of the block's attention: `project` or `project_together`.
    """
    if memory == "fast":
        return project(block.ln_1(x))
    return recomputed(partial(_norm, block.ln_1), project, x)


def after_attention(block: Any, memory: Memory, x: Tensor, mixed: Tensor) -> Tensor:
    """Return rows x [..., D] of the residual stream after the block.

    Args:
        mixed: attention's output for these rows, before its projection [..., D].
    """
    x = x + block.ls_1(block.attn.out_proj(mixed))
    if memory == "fast":
        return x + block.ls_2(block.mlp(block.ln_2(x)))
    mlp = block.mlp
    hidden = recomputed(partial(_norm, block.ln_2), mlp.c_fc, x)
    y = recomputed(lambda hidden: in_matmul_precision(mlp.gelu(hidden)), mlp.c_proj, hidden)
    return x + block.ls_2(y)


def _norm(norm: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Normalise rows. Under autocast, statistics are float32, but no float32 rows are kept."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype in (torch.float16, torch.bfloat16):
        return in_matmul_precision(recomputed(Tensor.float, norm, x))
    return in_matmul_precision(norm(x))
