"""Sets of a tensor's entries, as flat indices: read, written, located and thinned out.

A flat index is row-major in a tensor's logical order, whatever its strides. Names end in their
shape: R rows, one a tensor; M entries of each. Nothing here but `read` and `subtract` loops over
tensors, and no shape depends on data, so that no device is ever waited for.
"""

import torch
from torch import Tensor


def read(tensor: Tensor, index_M: Tensor | None) -> Tensor:
    """Return the entries at `index_M` [M], or the tensor as it is for None."""
    return tensor if index_M is None else tensor.take(index_M)


def subtract(tensors: list[Tensor], index_RM: Tensor, values_RM: Tensor) -> None:
    """Subtract `values_RM` from the entries at `index_RM`, in place, one row a tensor.

    A tensor of fewer bits than the values is rounded once, after the subtraction.
    """
    rows = list(zip(tensors, index_RM.unbind(), strict=True))
    if tensors[0].dtype != values_RM.dtype:
        old_RM = torch.stack([read(*row) for row in rows])
        new_RM = (old_RM.to(values_RM.dtype) - values_RM).to(old_RM.dtype)
        for (tensor, index_M), new_M in zip(rows, new_RM.unbind(), strict=True):
            if tensor.is_contiguous():
                tensor.view(-1).index_copy_(0, index_M, new_M)
            else:
                tensor.put_(index_M, new_M)
        return
    for (tensor, index_M), values_M in zip(rows, (-values_RM).unbind(), strict=True):
        if tensor.is_contiguous():
            tensor.view(-1).index_add_(0, index_M, values_M)
        else:
            tensor.put_(index_M, values_M, accumulate=True)


def spread(values_M: Tensor, index_M: Tensor, size: int) -> Tensor:
    """Return `size` zeros, but for `values_M` at `index_M`."""
    return values_M.new_zeros(size).index_copy_(0, index_M, values_M)


def locate(wanted_RM: Tensor, sorted_RM: Tensor) -> Tensor:
    """Return the place of each wanted index in its row of `sorted_RM`, or M if it is not there."""
    m = sorted_RM.shape[1]
    at_RM = torch.searchsorted(sorted_RM, wanted_RM)
    there_RM = sorted_RM.gather(1, at_RM.clamp(max=m - 1)) == wanted_RM
    return at_RM.where(there_RM, m)


def largest(score_RN: Tensor, index_RN: Tensor, count: int) -> Tensor:
    """Return where the `count` largest scores of each row are, in no particular order.

    Of equal scores, that of the lower index is taken: the outcome depends neither on the order of a
    row nor on the device. What is not a number counts as larger than all numbers.

    Args:
        score_RN: at least 0, or -1 for what is not to be taken.
        index_RN: what each score belongs to; no index twice in a row, but for those of score -1.
        count: how many to take.
    """
    if score_RN.dtype == torch.float32:
        # As integers, the bits of floats of one sign are ordered as the floats are. The lower half
        # of the key has room for indices below 2^32; beyond, scores an ulp apart may be confused.
        key_RN = (score_RN.view(torch.int32).long() << 32) - index_RN
        return key_RN.topk(count, sorted=False).indices
    order_RN = index_RN.argsort(1)
    best_RN = score_RN.gather(1, order_RN).sort(dim=1, descending=True, stable=True).indices
    return order_RN.gather(1, best_RN[:, :count])
