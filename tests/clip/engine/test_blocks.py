"""How much of a block is kept, in the arithmetic of `so_clip.clip.engine.blocks`."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from so_clip.clip.engine.activation import lean_quick_gelu
from so_clip.clip.engine.attention import explicit_attention
from so_clip.clip.engine.blocks import (
    MEMORY_MODES,
    Memory,
    after_attention,
    before_attention,
    run_block,
)
from so_clip.config import settings
from so_clip.optim.sampled import sampled_gradients
from so_clip.optim.so import SO
from tests.helpers.kept_tensors import kept_bytes
from tests.helpers.small_models import small_clip

WIDTH, TOKENS, IMAGES = 64, 17, 3
TRAINED = ("in_proj.weight", "out_proj.weight", "c_fc.weight", "c_proj.weight")


def block_of(quick_gelu: bool = False, **vision: Any) -> Any:
    model = small_clip(quick_gelu, **vision)
    explicit_attention(model)
    lean_quick_gelu(model)
    block = model.visual.transformer.resblocks[0]
    for name, parameter in block.named_parameters():
        parameter.requires_grad_(name.endswith(TRAINED))
    return block


def rows(requires_grad: bool = True) -> Tensor:
    shape = (IMAGES, TOKENS, WIDTH)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_(
        requires_grad
    )


def forward(block: Any, memory: Memory, x: Tensor) -> Tensor:
    mixed = block.attn.attend(*before_attention(block, memory, x, block.attn.project))
    return after_attention(block, memory, x, mixed)


def kept_units(block: Any, memory: Memory, x: Tensor) -> float:
    """What is kept besides the input, in units of it; without the output."""
    known = [x, *block.parameters()]
    return kept_bytes(lambda: run_block(block, memory, forward, x), known) / (x.numel() * 4) - 1


# The statistics of both norms and of attention: per token, two numbers each, and one for each head.
STATISTICS = (2 + 2 + 2) / WIDTH


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_bytes_by_arithmetic(quick_gelu: bool) -> None:
    block = block_of(quick_gelu)
    assert kept_units(block, "fast", rows()) == 15 + STATISTICS
    assert kept_units(block, "balanced", rows()) == 9 + STATISTICS
    assert kept_units(block, "small", rows()) == 0
    # Where nothing before the block is trained, its first norm has no part in the backward pass.
    assert kept_units(block, "fast", rows(False)) == 15 + STATISTICS - 2 / WIDTH


@pytest.mark.parametrize("memory", MEMORY_MODES)
def test_frozen_blocks_keep_nothing(memory: Memory) -> None:
    block = block_of().requires_grad_(False)
    x = rows(requires_grad=False)
    assert kept_units(block, memory, x) == 0
    # With something trained before it, a frozen block keeps no inputs of linear layers.
    frozen = {"fast": 9.0, "balanced": 9.0, "small": 0.0}
    assert kept_units(block, memory, rows()) == frozen[memory] + STATISTICS * (memory != "small")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_no_wider_copies_are_kept(dtype: torch.dtype) -> None:
    # torch's own linear layers also keep their rounded weights.
    block = block_of()
    optimizer = SO([p for p in block.parameters() if p.requires_grad], density_ratio=0.2)
    x = rows().detach().to(dtype).requires_grad_()
    with sampled_gradients(block, optimizer, always=True), torch.autocast("cpu", torch.bfloat16):
        known = [x, *block.parameters()]
        run_block(block, "fast", forward, x)  # rounds the frozen biases, once for all calls
        kept = {
            memory: kept_bytes(lambda m=memory: run_block(block, m, forward, x), known)
            for memory in MEMORY_MODES
        }
    y = between = x.nbytes  # the output and the residual stream between attention and MLP
    statistics, unit = STATISTICS * x.numel() * 4, x.numel() * 2
    assert kept["fast"] == y + between + statistics + (2 + 3 + 1 + 4 + 4) * unit
    assert kept["balanced"] == y + between + statistics + (3 + 1 + 4) * unit
    assert kept["small"] == y


def test_in_training_mode_draws_are_repeated() -> None:
    block = block_of()
    block.attn.out_proj = nn.Sequential(nn.Dropout(0.5), block.attn.out_proj)
    expected = {}
    for memory in MEMORY_MODES:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            run_block(block, memory, forward, rows()).square().sum().backward()
        grads = [p.grad for p in block.parameters() if p.grad is not None]
        assert len(grads) == 4
        expected[memory] = grads
        block.zero_grad(set_to_none=True)
    for memory in MEMORY_MODES:
        torch.testing.assert_close(expected[memory], expected["fast"], rtol=1e-5, atol=1e-5)


def test_the_settings_have_the_same_modes() -> None:
    assert get_args(settings.Placement.model_fields["memory"].annotation) == MEMORY_MODES


def test_sampled_layers_copy_no_columns_of_inputs_that_are_saved_anyway() -> None:
    block = block_of()
    optimizer = SO([p for p in block.parameters() if p.requires_grad], density_ratio=0.003)
    with sampled_gradients(block, optimizer, always=True) as handle:
        assert {*handle.methods.values()} == {"columns"}
        for memory in MEMORY_MODES:  # the coordinates of the supports are computed once
            run_block(block, memory, forward, rows())
        assert kept_units(block, "balanced", rows()) == 9 + STATISTICS
        # No columns of out_proj's input; fast keeps columns of the other three layers' inputs.
        assert 9 + STATISTICS < kept_units(block, "fast", rows()) < 15
