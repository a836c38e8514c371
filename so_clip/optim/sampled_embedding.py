"""Selected entries of the gradient of an embedding's table.

Entry (i, j) of the gradient of a table [V, D] is the sum of g[n, j] over the tokens n with the id
i, for the gradient g of the output. N tokens have at most N ids, so at most N rows of the gradient
are not 0. Only these rows exist for a moment, never all V: a batch of 8 sentence pairs has a few
hundred of BERT's 30,522 words. torch adds up the tokens in both cases, so sums in float32 are equal
bit for bit.

Names end in their shape: N tokens, M selected entries.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from so_clip.optim.sampling import Sampling, is_sampled

# In place of the id of a padding.
NO_PADDING = -1
# A sampled entry takes about as long as this number of entries of the whole gradient, on one core.
_COST_OF_A_SAMPLE = 16


def is_faster(entries: int, numel: int) -> bool:
    """Return whether M entries of a table's gradient should be faster than the whole gradient."""
    return entries * _COST_OF_A_SAMPLE <= numel


def entries_of_embedding(
    g_ND: Tensor, id_N: Tensor, support_M: Tensor, rows: int, padding: int
) -> Tensor:
    """Return the entries of the table's gradient at `support_M`, computed in at least float32.

    Temporaries take at most the memory of g in float32 and 8 V bytes. Nothing waits for the device.

    Args:
        g_ND: the gradient of the output.
        id_N: the tokens, int64.
        support_M: flat indices int64, ascending, in the table.
        rows: V.
        padding: the id whose row has no gradient; -1: none.

    Returns:
        Values [M]: float32 for half precision, otherwise of g's dtype.
    """
    tokens, columns = g_ND.shape
    g_ND = g_ND.to(torch.promote_types(g_ND.dtype, torch.float32))
    if rows <= tokens:
        return _table(g_ND, id_N, rows, padding).take(support_M)
    # Each id has the row of one of its tokens. The last row stays 0, for ids that have no gradient.
    place_V = id_N.new_full((rows,), tokens)
    place_V.scatter_(0, id_N, torch.arange(tokens, device=id_N.device))
    if padding != NO_PADDING:
        place_V[padding] = tokens
    table = _table(g_ND, place_V.take(id_N), tokens + 1, padding=tokens)
    row_M = support_M // columns
    return table.take(place_V.take(row_M) * columns + (support_M - row_M * columns))


def _table(g_ND: Tensor, row_N: Tensor, rows: int, padding: int) -> Tensor:
    """Return a table of zeros with each token's gradient added to its row."""
    table: Tensor = torch.ops.aten.embedding_dense_backward(g_ND, row_N, rows, padding, False)
    return table


# A custom operator, so that torch.compile and fake tensors do not trace into it.
sampled_embedding = torch.library.custom_op(
    "so_clip::sampled_embedding", entries_of_embedding, mutates_args=()
)


@sampled_embedding.register_fake
def _(g_ND: Tensor, id_N: Tensor, support_M: Tensor, rows: int, padding: int) -> Tensor:
    dtype = torch.promote_types(g_ND.dtype, torch.float32)
    return g_ND.new_empty(support_M.shape, dtype=dtype)


class SampledEmbedding(nn.Embedding):
    """An embedding that computes its table's gradient at `sampling.support_M` alone."""

    sampling: Sampling | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Return nn.Embedding's output, for ids of any shape."""
        sampling = self.sampling
        if sampling is None or not is_sampled(sampling, self.weight):
            return super().forward(input)
        padding = NO_PADDING if self.padding_idx is None else self.padding_idx
        y: Tensor = _Embedding.apply(
            input, self.weight, sampling.leaf(), sampling.support_M, padding
        )
        return y


def can_be_sampled(layer: nn.Embedding) -> bool:
    """Return whether no option of the layer needs the whole gradient, or another one."""
    return layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse


class _Embedding(torch.autograd.Function):
    """F.embedding. Only the ids are kept for the backward pass; see `sampled_layers._Linear`."""

    @staticmethod
    def forward(
        ctx: Any, ids: Tensor, weight_VD: Tensor, leaf_M: Tensor, support_M: Tensor, padding: int
    ) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.support_M, ctx.rows, ctx.padding = support_M, len(weight_VD), padding
        return F.embedding(ids, weight_VD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        grad_M = sampled_embedding(
            grad.reshape(-1, grad.shape[-1]),
            ids.flatten().long(),
            ctx.support_M,
            ctx.rows,
            ctx.padding,
        )
        return None, None, grad_M, None, None
