"""Changes of one tensor: the smaller form, exact sums, and their undoing."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from so_clip.adapters.change import change_between, combined, from_gaps, to_gaps

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def pair(seed: int, size: int, share: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return a base and an adapted tensor with changes of all magnitudes, signs and zeros."""
    draws = torch.Generator().manual_seed(seed)
    base = torch.randn(size, generator=draws, dtype=torch.float64)
    base[::7] = 0.0
    base[1::7] = -0.0
    moved = torch.rand(size, generator=draws) < share
    exponent = torch.randint(-30, 6, (size,), generator=draws)
    step = torch.randn(size, generator=draws, dtype=torch.float64) * 2.0**exponent
    new = torch.where(moved, base + step, base)
    new[2::7] = -new[2::7] * moved[2::7] + new[2::7] * ~moved[2::7]
    return base.to(dtype), new.to(dtype)


def bits(value: Tensor) -> bytes:
    return value.contiguous().view(torch.uint8).numpy().tobytes()


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 2000),
    share=st.sampled_from([0.0, 0.002, 0.1, 0.6, 1.0]),
    dtype=st.sampled_from(DTYPES),
)
def test_a_change_gives_the_adapted_bits_and_its_undo_the_base_bits(seed, size, share, dtype):
    base, new = pair(seed, size, share, dtype)
    change = change_between(base, new)
    if change is None:
        assert bits(base) == bits(new)
        return
    tensor = base.clone()
    undo = change.undo_of(tensor)
    change.write_into(tensor)
    assert bits(tensor) == bits(new)
    undo(tensor)
    assert bits(tensor) == bits(base)


def test_few_moved_entries_are_stored_as_entries_and_many_as_a_whole_tensor():
    base = torch.randn(1000, 100, generator=torch.Generator().manual_seed(1))
    few, many = base.clone(), base + 1e-3
    few.view(-1)[::1000] += 1e-3
    sparse, dense = change_between(base, few), change_between(base, many)
    assert sparse is not None
    assert sparse.index_M is not None
    assert sparse.index_M.tolist() == [*range(0, 100_000, 1000)]
    assert sparse.nbytes <= 100 * 10
    assert dense is not None
    assert dense.index_M is None
    assert len(dense.exact_X) < 0.1 * base.numel()


def test_gaps_have_the_smallest_type():
    for index, dtype in [
        ([0, 255, 256], torch.uint8),
        ([256], torch.uint16),
        ([70_000], torch.uint32),
    ]:
        gaps = to_gaps(torch.tensor(index))
        assert gaps.dtype == dtype
        assert from_gaps(gaps).tolist() == index
    assert to_gaps(torch.empty(0, dtype=torch.int64)).dtype == torch.uint8


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    shares=st.lists(st.sampled_from([0.01, 0.9]), min_size=2, max_size=4),
)
def test_a_weighted_sum_equals_a_slow_one_in_float64(seed, shares):
    base = torch.randn(500, generator=torch.Generator().manual_seed(seed))
    others = []
    for place, share in enumerate(shares):
        draws = torch.Generator().manual_seed(seed + place + 1)
        step = 0.01 * torch.randn(500, generator=draws)
        others.append(base + step * (torch.rand(500, generator=draws) < share))
    found = [(change_between(base, other), 0.5 - place) for place, other in enumerate(others)]
    terms = [(change, weight) for change, weight in found if change is not None]
    slow = base.double()
    for (_, weight), other in zip(found, others, strict=True):
        slow = slow + weight * (other.double() - base.double())
    if terms:
        tensor = base.clone()
        combined(terms).write_into(tensor)
        torch.testing.assert_close(tensor.double(), slow, rtol=1e-6, atol=1e-7)
