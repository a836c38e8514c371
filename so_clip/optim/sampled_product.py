"""Selected entries of a product gᵀx, the gradient of a linear layer's weight.

Entry (i, j) is the sum over tokens of g[:, i] · x[:, j]. There are four ways to compute it. On the
CPU three of them are each the fastest in a range of densities (scripts/bench_sampled.py): gather
the columns needed and multiply them; torch's sampled product of sparse matrices; whole rows of gᵀx,
then a selection. The fourth is for half precision on a GPU: the whole product by one call, then one
`take`. Its tensor cores multiply faster than it reads single columns.

Names end in their shape: N tokens, O outputs and I inputs of the layer, M selected entries, P >= M
columns of the input.
"""

import math
import warnings
from functools import cache
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import register_flop_formula

from so_clip.optim.sampled_convolution import is_faster

Method = Literal["columns", "gather", "csr", "rows", "whole", "whole_columns"]

# The methods that keep columns of the input for the backward pass, in place of the input.
KEEPS_COLUMNS: tuple[Method, ...] = ("columns", "whole_columns")
# The methods that make one product of all that is kept, then take entries of it.
MULTIPLIES_ALL: tuple[Method, ...] = ("whole", "whole_columns")
# The methods that read coordinates; see `coordinates`.
READS_COORDINATES: tuple[Method, ...] = ("columns", "gather", "whole_columns")

# Nanoseconds per token: for a call (of 500 tokens), for each of the O + I values, for each entry;
# and for each of the O I values of the whole product. Measured on one core of a server in float32;
# only the ratios matter.
_GATHERING = (200, 0.2, 1.6)  # two random reads for each product
_SPARSE_PRODUCT = (400, 1.1, 0.1)  # transposes both factors, then reads in order
_WHOLE_PRODUCT = 1 / 70

# Values in one temporary. On the CPU they fit the second-level cache.
_CPU_TEMPORARY = 2**17
_GPU_TEMPORARY = 2**22
_CSR_TOKENS = 128  # per sampled product of sparse matrices
_BLOCK = 2**20  # values in a block of whole rows
# Tensor cores need rows of 16 bytes: copied columns are padded to a multiple of this number.
_ALIGNED = 8


def fastest(
    entries: int, shape: tuple[int, ...], device: torch.device, whole: bool = False
) -> tuple[Method, bool]:
    """Return how to compute M entries of the gradient of a weight of shape [O, I] or [O, I, k, l].

    columns: gather from a copy of the M columns of x, which takes less memory than x. The other
    methods keep x itself, except whole_columns.
    gather, csr, rows: the first three ways of this module, in its order. csr is for the CPU only,
    the one device that was measured. A convolution is "gather" or "whole".
    whole: the fourth way.
    whole_columns: the fourth way with a copy of M columns of x in the place of x. It takes less
    memory, and the product is smaller.

    Args:
        entries: M.
        shape: of the weight.
        device: of the weight.
        whole: choose the fourth way.

    Returns:
        The method, and whether sampling should be faster than the whole product.
    """
    if len(shape) == 4:
        return "whole" if whole else "gather", is_faster(entries, math.prod(shape))
    method, faster = _fastest_sampled(entries, shape, device)
    if whole:
        method = "whole_columns" if padded(entries) < shape[1] else "whole"
    return method, faster


def padded(entries: int) -> int:
    """Return P, the number of columns that whole_columns keeps for M entries."""
    return -(-entries // _ALIGNED) * _ALIGNED


def _fastest_sampled(
    entries: int, shape: tuple[int, ...], device: torch.device
) -> tuple[Method, bool]:
    out_features, in_features = shape
    values, whole = out_features + in_features, _WHOLE_PRODUCT * out_features * in_features
    costs: dict[Method, float] = {
        "gather": _cost(_GATHERING, values, entries),
        "csr": _cost(_SPARSE_PRODUCT, values, entries),
        "rows": whole,
    }
    if entries < in_features:
        return "columns", costs["gather"] < whole
    if device.type != "cpu":
        gather = costs["gather"] < costs["csr"]
        return "gather" if gather else "rows", gather
    method = min(costs, key=lambda name: costs[name])
    return method, method != "rows"


def _cost(rates: tuple[float, float, float], values: int, entries: int) -> float:
    call, value, entry = rates
    return call + value * values + entry * entries


def coordinates(support_M: Tensor, in_features: int, method: Method) -> tuple[Tensor, Tensor]:
    """Return the row and the column of each entry, in the form that a method reads.

    For whole_columns, these are the place [M] of each entry in the product [O, P] and the columns
    [P] of x to keep. Columns from M to P are column 0, and no entry reads them.
    """
    row_M, column_M = support_M // in_features, support_M % in_features
    if method != "whole_columns":
        return row_M, column_M
    entries = len(support_M)
    width = padded(entries)
    place_M = row_M * width + torch.arange(entries, device=support_M.device)
    return place_M, F.pad(column_M, (0, width - entries))


def entries_of_product(
    g_NO: Tensor,
    x_NI: Tensor,
    support_M: Tensor,
    in_features: int,
    method: str,
    row_M: Tensor | None = None,
    column_M: Tensor | None = None,
) -> Tensor:
    """Return the entries of gᵀx [O, I] at `support_M`, computed in at least float32.

    Temporaries take a few MiB at most, for any N; with "rows", also a few times M values; with
    "whole" and "whole_columns", also the product.

    Args:
        g_NO: the gradient of a linear layer's output.
        x_NI: the layer's input; for a method of KEEPS_COLUMNS, its columns that are kept.
        support_M: flat indices int64, ascending.
        in_features: I.
        method: a Method.
        row_M, column_M: `coordinates`, if they are known already; for READS_COORDINATES.

    Returns:
        Values [M]: float32 for half precision, otherwise of g's dtype.
    """
    kind = g_NO.device.type
    if torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return entries_of_product(
                g_NO, x_NI, support_M, in_features, method, row_M=row_M, column_M=column_M
            )
    if method == "whole":
        return _whole_product(g_NO, x_NI).take(support_M).to(_sum_type(g_NO))
    if method == "csr":
        return _by_sparse_product(g_NO, x_NI, support_M)
    if method == "rows":
        return _by_rows(g_NO, x_NI, support_M)
    if row_M is None:
        row_M, column_M = coordinates(support_M, in_features, cast(Method, method))
    if method == "whole_columns":
        return _whole_product(g_NO, x_NI).take(row_M).to(_sum_type(g_NO))
    return _by_gathering(g_NO, x_NI, row_M, None if method == "columns" else column_M)


# A custom operator, so that torch.compile and fake tensors do not trace into it.
sampled_product = torch.library.custom_op(
    "so_clip::sampled_product", entries_of_product, mutates_args=()
)


@sampled_product.register_fake
def _(
    g_NO: Tensor,
    x_NI: Tensor,
    support_M: Tensor,
    in_features: int,
    method: str,
    row_M: Tensor | None = None,
    column_M: Tensor | None = None,
) -> Tensor:
    return g_NO.new_empty(support_M.shape, dtype=_sum_type(g_NO))


@register_flop_formula(torch.ops.so_clip.sampled_product)
def _(
    g_shape: tuple[int, int],
    x_shape: tuple[int, int],
    support_shape: tuple[int],
    in_features: int,
    method: str,
    *_: object,
    **_options: object,
) -> int:
    (tokens, out_features), (entries,) = g_shape, support_shape
    products = {"rows": out_features * in_features, "whole": out_features * in_features}
    products["whole_columns"] = out_features * x_shape[1]
    return 2 * tokens * products.get(method, entries)


def _sum_type(g_NO: Tensor) -> torch.dtype:
    return g_NO.dtype if g_NO.dtype.itemsize >= 4 else torch.float32


def _whole_product(g_NO: Tensor, x_NI: Tensor) -> Tensor:
    """Return gᵀx, for half precision in float32 if the device can.

    A GPU that cannot rounds the sums to half precision once, as in a dense gradient. A float32
    product would not use its tensor cores.
    """
    if g_NO.dtype == _sum_type(g_NO):
        return g_NO.T @ x_NI
    # Fake tensors on the CPU stand for those of a GPU, as in a forecast: the CPU uses other
    # methods.
    is_fake = isinstance(g_NO, FakeTensor)
    if g_NO.device.type == "cpu" and not is_fake:
        return g_NO.T.float() @ x_NI.float()
    if is_fake or _sums_in_float32(g_NO.device, g_NO.dtype):
        return torch.mm(g_NO.T, x_NI, out_dtype=torch.float32)
    return g_NO.T @ x_NI


@torch.compiler.assume_constant_result
@cache
def _sums_in_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether torch.mm can return float32 for half precision here. It is tried once."""
    one = torch.ones(1, 1, dtype=dtype, device=device)
    try:
        torch.mm(one, one, out_dtype=torch.float32)
    except (TypeError, RuntimeError):  # an older torch, or another device
        return False
    return True


def _by_gathering(g_NO: Tensor, x_NI: Tensor, row_M: Tensor, column_M: Tensor | None) -> Tensor:
    sum_M = g_NO.new_zeros(len(row_M), dtype=_sum_type(g_NO))
    values = _CPU_TEMPORARY if g_NO.device.type == "cpu" else _GPU_TEMPORARY
    tokens = max(1, values // max(1, len(row_M)))
    for g_nO, x_nI in zip(g_NO.split(tokens), x_NI.split(tokens), strict=True):
        product_nM = _columns(g_nO, row_M, sum_M.dtype)
        product_nM *= _columns(x_nI, column_M, sum_M.dtype)
        sum_M += product_nM.sum(0)
    return sum_M


def _columns(x_nI: Tensor, column_M: Tensor | None, dtype: torch.dtype) -> Tensor:
    if column_M is None:
        return x_nI.to(dtype)
    if len(column_M) < x_nI.shape[1]:
        return x_nI.index_select(1, column_M).to(dtype)
    return x_nI.to(dtype).index_select(1, column_M)


def _by_sparse_product(g_NO: Tensor, x_NI: Tensor, support_M: Tensor) -> Tensor:
    _expect_beta_warning()
    dtype, (rows, columns) = _sum_type(g_NO), (g_NO.shape[1], x_NI.shape[1])
    row_starts = torch.arange(rows + 1, device=support_M.device) * columns
    sum_OI = torch.sparse_csr_tensor(
        torch.searchsorted(support_M, row_starts),
        support_M % columns,
        g_NO.new_zeros(len(support_M), dtype=dtype),
        (rows, columns),
        check_invariants=False,
    )
    for g_nO, x_nI in zip(g_NO.split(_CSR_TOKENS), x_NI.split(_CSR_TOKENS), strict=True):
        torch.sparse.sampled_addmm(sum_OI, g_nO.T.to(dtype), x_nI.to(dtype), out=sum_OI)
    return sum_OI.values()


@cache
def _expect_beta_warning() -> None:
    """Trigger torch's one warning that CSR tensors are in beta, and suppress it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1), check_invariants=False)


def _by_rows(g_NO: Tensor, x_NI: Tensor, support_M: Tensor) -> Tensor:
    """Compute gᵀx in blocks of rows and select entries of each, without waiting for the device.

    A block has at most 4 MiB of float32 values; a smaller product is one block.
    """
    columns = x_NI.shape[1]
    tokens = max(1, _BLOCK // columns)
    taken_M = g_NO.new_zeros(len(support_M), dtype=_sum_type(g_NO))
    start = 0
    for g_No in g_NO.split(max(1, _BLOCK // columns), dim=1):
        block_oI = taken_M.new_zeros(g_No.shape[1], columns)
        for g_no, x_nI in zip(g_No.split(tokens), x_NI.split(tokens), strict=True):
            block_oI.addmm_(g_no.T.to(block_oI.dtype), x_nI.to(block_oI.dtype))
        at_M = support_M - start
        is_here_M = (at_M >= 0) & (at_M < block_oI.numel())
        at_M.clamp_(0, block_oI.numel() - 1)
        taken_M = block_oI.take(at_M).where(is_here_M, taken_M)
        start += block_oI.numel()
    return taken_M
