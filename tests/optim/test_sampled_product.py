"""Entries of a product by each method against the whole product in float64."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from so_clip.optim.sampled_product import (
    KEEPS_COLUMNS,
    coordinates,
    entries_of_product,
    fastest,
    sampled_product,
)
from tests.helpers.dispatched import Dispatched
from tests.helpers.storages import Storages

METHODS = ("columns", "gather", "csr", "rows", "whole", "whole_columns")
CPU = torch.device("cpu")


def case(
    tokens: int, rows: int, columns: int, entries: int, dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return g_NO, x_NI and the support_M of some entries of their product."""
    generator = torch.Generator().manual_seed(seed)
    g_NO = torch.randn(tokens, rows, generator=generator, dtype=torch.float64).to(dtype)
    x_NI = torch.randn(tokens, columns, generator=generator, dtype=torch.float64).to(dtype)
    support_M = torch.randperm(rows * columns, generator=generator)[:entries].sort().values
    return g_NO, x_NI, support_M


def kept(x_NI: Tensor, support_M: Tensor, method: str) -> Tensor:
    """Return the part of its input that a layer keeps."""
    if method not in KEEPS_COLUMNS:
        return x_NI
    return x_NI[:, coordinates(support_M, x_NI.shape[1], method)[1]]


def exact(g_NO: Tensor, x_NI: Tensor, support_M: Tensor) -> Tensor:
    return (g_NO.double().T @ x_NI.double()).take(support_M)


def bound(g_NO: Tensor, x_NI: Tensor, support_M: Tensor) -> Tensor:
    """Return each entry's sum of absolute terms, the scale of its rounding error."""
    return exact(g_NO.abs(), x_NI.abs(), support_M)


@pytest.mark.fast_cases(16)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Half precision is summed in float32: its products are exact there.
    [
        (torch.float64, 1e-12),
        (torch.float32, 1e-6),
        (torch.bfloat16, 1e-6),
        (torch.float16, 1e-6),
    ],
)
@pytest.mark.parametrize(
    ("tokens", "rows", "columns", "entries"),
    [
        (1, 1, 1, 1),
        (0, 5, 3, 4),
        (7, 5, 3, 1),
        (7, 5, 3, 15),
        (300, 33, 65, 200),  # more tokens than are taken at once
        (5, 1100, 1000, 130_000),  # more entries than are gathered at once, two blocks of rows
        (1100, 3, 1000, 50),  # more tokens than a block is multiplied by at once
    ],
)
def test_entries_are_those_of_the_whole_product(
    method, dtype, tolerance, tokens, rows, columns, entries
):
    if method == "whole_columns":  # multiplies as many columns as there are entries
        entries = min(entries, 4 * columns)
    g_NO, x_NI, support_M = case(tokens, rows, columns, entries, dtype)
    values_M = sampled_product(g_NO, kept(x_NI, support_M, method), support_M, columns, method)
    assert values_M.dtype == torch.promote_types(dtype, torch.float32)
    error_M = (values_M - exact(g_NO, x_NI, support_M)).abs()
    assert (error_M <= tolerance * bound(g_NO, x_NI, support_M)).all()


@settings(max_examples=60)
@given(
    tokens=st.integers(0, 40),
    rows=st.integers(1, 30),
    columns=st.integers(1, 30),
    density=st.floats(1e-6, 1),
    method=st.sampled_from(METHODS),
    seed=st.integers(0, 9),
)
def test_any_shape_and_density(tokens, rows, columns, density, method, seed):
    entries = max(1, int(rows * columns * density))
    g_NO, x_NI, support_M = case(tokens, rows, columns, entries, torch.float64, seed)
    values_M = sampled_product(g_NO, kept(x_NI, support_M, method), support_M, columns, method)
    torch.testing.assert_close(values_M, exact(g_NO, x_NI, support_M), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_any_strides(method):
    g_NO, x_NI, support_M = case(9, 8, 6, 20, torch.float64)
    g_NO, x_NI = g_NO.T.contiguous().T, x_NI[:, :1].expand(-1, 6)
    values_M = sampled_product(g_NO, kept(x_NI, support_M, method), support_M, 6, method)
    torch.testing.assert_close(values_M, exact(g_NO, x_NI, support_M), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_infinite_values_stay_infinite(method):
    g_NO, x_NI, support_M = case(9, 4, 3, 12, torch.float32)
    g_NO[5, 2] = torch.inf
    values_M = sampled_product(g_NO, kept(x_NI, support_M, method), support_M, 3, method)
    assert torch.equal(values_M.isfinite(), support_M // 3 != 2)


@pytest.mark.parametrize("method", METHODS)
def test_autocast_around_the_backward_pass_changes_nothing(method):
    g_NO, x_NI, support_M = case(50, 8, 6, 20, torch.float32)
    arguments = (g_NO, kept(x_NI, support_M, method), support_M, 6, method)
    plain_M = sampled_product(*arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sampled_product(*arguments), plain_M)


@pytest.mark.parametrize("method", METHODS)
def test_torch_accepts_the_custom_operator(method):
    g_NO, x_NI, support_M = case(9, 8, 6, 20, torch.bfloat16)
    arguments = (g_NO, kept(x_NI, support_M, method), support_M, 6, method)
    torch.library.opcheck(sampled_product, arguments)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("method", METHODS)
def test_temporaries_are_small_and_the_host_reads_nothing(method):
    # The product has 8 MiB of float32 values, the factors 32 and 16 MiB.
    g_NO, x_NI, support_M = case(4096, 2048, 1024, 2000, torch.float32)
    kept_NI = kept(x_NI, support_M, method)
    # In torch's CPU code for CSR tensors there are checks that read; no other device runs it.
    with Storages(g_NO, kept_NI, support_M, may_read=method == "csr") as storages:
        entries_of_product(g_NO, kept_NI, support_M, 1024, method)
    # Two methods make the whole product [O, I] or [O, P], once.
    products = {"rows": 2**22, "whole": 2**23, "whole_columns": 2048 * 2000 * 4}
    assert max(storages.sizes) <= products.get(method, 2**20)


@pytest.mark.parametrize("method", METHODS)
def test_torch_counts_the_flops(method):
    g_NO, x_NI, support_M = case(9, 8, 6, 20, torch.float32)
    with FlopCounterMode(display=False) as counter:
        sampled_product(g_NO, kept(x_NI, support_M, method), support_M, 6, method)
    products = {"rows": 8 * 6, "whole": 8 * 6, "whole_columns": 8 * 24}
    assert counter.get_total_flops() == 2 * 9 * products.get(method, 20)


def test_no_warning_reaches_the_user():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampled_product(*case(3, 4, 5, 6, torch.float32), 5, "csr")


@pytest.mark.parametrize(
    ("entries", "shape", "device", "method", "faster"),
    [
        # ViT-B/16 at density 5e-4: attention's projections, then the MLP's matrices.
        (884, (2304, 768), "cpu", "gather", True),
        (294, (768, 768), "cpu", "columns", True),
        (1179, (3072, 768), "cpu", "gather", True),
        (1179, (768, 3072), "cpu", "columns", True),
        # The input's columns take less memory than the input only while they are fewer.
        (767, (3072, 768), "cpu", "columns", True),
        (768, (3072, 768), "cpu", "gather", True),
        # At 1%, and from 1/8 on.
        (23592, (3072, 768), "cpu", "csr", True),
        (23592, (3072, 768), "cuda", "rows", False),
        (294912, (3072, 768), "cpu", "rows", False),
        (3072 * 768 - 1, (3072, 768), "cuda", "rows", False),
        # The tiny model's at 2%; a small product is soon made.
        (1310, (512, 128), "cpu", "rows", False),
        (32, (512, 128), "cpu", "columns", True),
        (1, (1, 2), "cpu", "columns", False),
        (1, (2, 1), "cpu", "rows", False),
    ],
)
def test_the_fastest_method_follows_the_measured_costs(entries, shape, device, method, faster):
    assert fastest(entries, shape, torch.device(device)) == (method, faster)


def test_a_whole_product_keeps_columns_while_they_take_less_memory_than_the_input():
    cuda = torch.device("cuda")
    for entries, shape, method in [
        (1179, (3072, 768), "whole"),
        (1179, (768, 3072), "whole_columns"),
        (761, (768, 768), "whole"),  # padded to 768
        (760, (768, 768), "whole_columns"),
    ]:
        chosen, faster = fastest(entries, shape, cuda, whole=True)
        assert (chosen, faster) == (method, fastest(entries, shape, cuda)[1])
    assert fastest(20, (8, 4, 3, 3), cuda, whole=True)[0] == "whole"


@pytest.mark.parametrize("columns", [3, 40])
def test_on_a_gpu_a_whole_product_in_half_precision_is_two_operations_and_float32(columns):
    method = fastest(20, (8, columns), torch.device("cuda"), whole=True)[0]
    # Tensors without values stand for those of a GPU, so this machine needs none.
    with FakeTensorMode():
        g_NO = torch.empty(50, 8, dtype=torch.bfloat16, device="cuda")
        kept = torch.empty(50, min(columns, 24), dtype=torch.bfloat16, device="cuda")
        support_M = torch.empty(20, dtype=torch.int64, device="cuda")
        arguments = (g_NO, kept, support_M, columns, method)
        where = coordinates(support_M, columns, method)
        entries_of_product(*arguments, *where)  # tries once what torch can do
        with Dispatched() as dispatched:
            values_M = entries_of_product(*arguments, *where)
    assert dispatched.names == ["mm.dtype", "take"]
    assert values_M.dtype == torch.float32
