"""Sets of a tensor's entries as flat indices: read, write, locate and select them.

A flat index counts in row-major order of a tensor's logical shape, for any strides. Names end in
their shape: R rows, one per tensor; M entries of each. Only `read` and `subtract` loop over
tensors, and no shape depends on data, so no function waits for the device.
"""

import torch
from torch import Tensor


def read(tensor: Tensor, index_M: Tensor | None) -> Tensor:
    """Return the entries at `index_M` [M]; for None the tensor itself."""
    return tensor if index_M is None else tensor.take(index_M)


def subtract(tensors: list[Tensor], index_RM: Tensor, values_RM: Tensor) -> None:
    """Subtract `values_RM` from the entries at `index_RM`, in place, one row per tensor.

    A tensor of fewer bits than the values is rounded once, after the subtraction.
    """
    rows = list(zip(tensors, index_RM.unbind(), strict=True))
    if tensors[0].dtype != values_RM.dtype:
        old_RM = torch.stack([read(tensor, index_M) for tensor, index_M in rows])
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
    """Return a vector of `size` zeros with `values_M` at `index_M`."""
    return values_M.new_zeros(size).index_copy_(0, index_M, values_M)


def locate(wanted_RM: Tensor, sorted_RM: Tensor) -> Tensor:
    """Return the place of each wanted index in its row of `sorted_RM`; M if it is not in the row.

    Args:
        wanted_RM: flat indices, int64.
        sorted_RM: flat indices, int64, ascending in each row.
    """
    m = sorted_RM.shape[1]
    place_RM = torch.searchsorted(sorted_RM, wanted_RM)
    is_found_RM = sorted_RM.gather(1, place_RM.clamp(max=m - 1)) == wanted_RM
    return place_RM.where(is_found_RM, m)


def largest(score_RN: Tensor, index_RN: Tensor, count: int, *, ordered: bool = False) -> Tensor:
    """Return the places of the `count` largest scores of each row.

    Among equal scores, the lower index is taken. So the result depends neither on the order of a
    row nor on the device. NaN counts as larger than all numbers.

    Args:
        score_RN: at least 0, or -1 for entries that must not be taken.
        index_RN: the index that each score belongs to. Only scores of -1 may repeat an index.
        count: how many to take of each row.
        ordered: whether the largest must come first; otherwise the order is free.
    """
    if score_RN.dtype == torch.float32:
        # For floats of one sign, the bits read as integers have the same order. The lower half of
        # the key holds indices below 2^32; for higher ones, scores an ulp apart may be confused.
        key_RN = (score_RN.view(torch.int32).long() << 32) - index_RN
        return key_RN.topk(count, sorted=ordered).indices
    order_RN = index_RN.argsort(1)
    best_RN = score_RN.gather(1, order_RN).sort(dim=1, descending=True, stable=True).indices
    return order_RN.gather(1, best_RN[:, :count])
