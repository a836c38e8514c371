"""Selected entries of the gradient of a convolution's weight.

The weight [O, I, k, l] of a convolution is a matrix [O, I·k·l] that multiplies the windows of the
input. So an entry of its gradient is a sum over images n and places (y, x) of the output:

    ∂L/∂W[o, i, a, b] = Σ g[n, o, y, x] · p[n, i, s·y + d·a, s·x + d·b]

with g the gradient of the output, p the padded input, s the stride and d the dilation. M entries
need M planes of g and M shifted planes of p. All windows are views of p, so nothing is unfolded.

Names end in their shape: N images, M selected entries; P and Q are the output's height and width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

# A sampled product takes about as long as this number of products in the whole gradient
# (scripts/bench_sampled.py): two random reads, against blocks in cache.
_COST_OF_A_SAMPLE = 200

# Values in one temporary. On the CPU they fit the second-level cache.
_CPU_TEMPORARY = 2**17
_GPU_TEMPORARY = 2**22


class Geometry(NamedTuple):
    """The settings of a convolution, in the order of F.conv2d's arguments."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


def is_faster(entries: int, numel: int) -> bool:
    """Return whether M entries of a weight's gradient should be faster than the whole gradient."""
    return entries * _COST_OF_A_SAMPLE <= numel


def entries_of_convolution(
    g_NOPQ: Tensor,
    x_NIHW: Tensor,
    support_M: Tensor,
    shape: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """Return the entries of the weight's gradient at `support_M`, computed in at least float32.

    Temporaries take a few MiB, for any number of images; on the CPU also for any M.

    Args:
        g_NOPQ: the gradient of the output.
        x_NIHW: the input.
        support_M: flat indices int64, ascending, of a weight of this `shape`.
        shape: [O, I / groups, k, l].
        stride, padding, dilation, groups: see F.conv2d; lists of two numbers.

    Returns:
        Values [M]: float32 for half precision, otherwise of g's dtype.
    """
    dtype = torch.promote_types(g_NOPQ.dtype, torch.float32)
    out_M, in_M, row_M, column_M = _coordinates(support_M, shape, groups)
    places = max(1, g_NOPQ.shape[2] * g_NOPQ.shape[3])
    planes = max(1, (_CPU_TEMPORARY if g_NOPQ.device.type == "cpu" else _GPU_TEMPORARY) // places)
    images, entries = max(1, planes // max(1, len(support_M))), min(planes, len(support_M) or 1)
    sum_M = g_NOPQ.new_zeros(len(support_M), dtype=dtype)
    for g_nOPQ, x_nIHW in zip(g_NOPQ.split(images), x_NIHW.split(images), strict=True):
        x_nIHW = F.pad(x_nIHW, (padding[1], padding[1], padding[0], padding[0]))
        windows = _windows(x_nIHW, g_nOPQ.shape, shape, stride, dilation)
        for start in range(0, len(support_M), entries):
            part = slice(start, start + entries)
            product_nmPQ = g_nOPQ.index_select(1, out_M[part]).to(dtype)
            product_nmPQ *= windows[:, in_M[part], row_M[part], column_M[part]]
            sum_M[part] += product_nmPQ.sum((0, 2, 3))
    return sum_M


def _coordinates(support_M: Tensor, shape: list[int], groups: int) -> tuple[Tensor, ...]:
    """Return output channel, input channel, row and column in the kernel of each entry."""
    out_channels, group_channels, rows, columns = shape
    out_M = support_M // (group_channels * rows * columns)
    group_M = out_M // (out_channels // groups)
    in_M = support_M // (rows * columns) % group_channels + group_M * group_channels
    return out_M, in_M, support_M // columns % rows, support_M % columns


def _windows(
    x_NIHW: Tensor, out: torch.Size, shape: list[int], stride: list[int], dilation: list[int]
) -> Tensor:
    """Return the view [N, I, k, l, P, Q] of what each kernel entry sees at each output place."""
    n, i, h, w = x_NIHW.stride()
    return x_NIHW.as_strided(
        (*x_NIHW.shape[:2], *shape[2:], *out[2:]),
        (n, i, h * dilation[0], w * dilation[1], h * stride[0], w * stride[1]),
        x_NIHW.storage_offset(),
    )


# A custom operator, so that torch.compile and fake tensors do not trace into it.
sampled_convolution = torch.library.custom_op(
    "so_clip::sampled_convolution", entries_of_convolution, mutates_args=()
)


@sampled_convolution.register_fake
def _(
    g_NOPQ: Tensor,
    x_NIHW: Tensor,
    support_M: Tensor,
    shape: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    dtype = torch.promote_types(g_NOPQ.dtype, torch.float32)
    return g_NOPQ.new_empty(support_M.shape, dtype=dtype)


@register_flop_formula(torch.ops.so_clip.sampled_convolution)
def _(
    g_shape: tuple[int, int, int, int],
    x_shape: tuple[int, int, int, int],
    support_shape: tuple[int],
    *settings: object,
    **options: object,
) -> int:
    images, _, rows, columns = g_shape
    return 2 * images * rows * columns * support_shape[0]
