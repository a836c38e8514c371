"""Index sets against the obvious: Python's sets and sorted()."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from so_clip.optim.sparse_entries import largest, locate, read, spread, subtract

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def tensors_of(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """One of each shape and layout."""
    draw = torch.Generator().manual_seed(0)
    return {
        "scalar": torch.randn((), generator=draw).to(dtype),
        "vector": torch.randn(6, generator=draw).to(dtype),
        "transposed": torch.randn(4, 3, generator=draw).to(dtype).t(),
        "sliced": torch.randn(6, 8, generator=draw).to(dtype)[::2, 1::3],
        "channels_last": torch.randn(2, 3, 4, 5, generator=draw)
        .to(dtype)
        .to(memory_format=torch.channels_last),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", tensors_of(torch.float32))
def test_flat_indices_are_logical_whatever_the_strides(name: str, dtype: torch.dtype) -> None:
    tensor = tensors_of(dtype)[name]
    flat = tensor.flatten().clone()
    index_M = torch.randperm(flat.numel(), generator=torch.Generator().manual_seed(1))[:4]
    assert torch.equal(read(tensor, index_M), flat[index_M])

    values_M = torch.rand(len(index_M), dtype=torch.promote_types(dtype, torch.float32))
    subtract([tensor], index_M[None], values_M[None])
    flat[index_M] = (flat[index_M].to(values_M.dtype) - values_M).to(dtype)
    assert torch.equal(tensor.flatten(), flat)


def test_subtraction_rounds_once() -> None:
    # 1 - 2^-9 - 2^-20 is nearer to 1 - 2^-8 than to 1; were the 2^-9 - 2^-20 rounded first, 1 wins.
    tensor = torch.ones(1, dtype=torch.bfloat16)
    subtract([tensor], torch.zeros(1, 1, dtype=torch.int64), torch.tensor([[2**-9 + 2**-20]]))
    assert tensor.item() == 1 - 2**-8


def test_spread() -> None:
    spread_out = spread(torch.tensor([5.0, 7.0]), torch.tensor([3, 0]), 5)
    assert spread_out.tolist() == [7, 0, 0, 5, 0]


@settings(max_examples=60)
@given(st.integers(1, 12).flatmap(lambda m: st.lists(sets_of(m), min_size=1, max_size=4)))
def test_locate(rows: list[tuple[list[int], list[int]]]) -> None:
    wanted_RM = torch.tensor([wanted for wanted, _ in rows])
    sorted_RM = torch.tensor([sorted(there) for _, there in rows])
    for place_M, (wanted, there) in zip(locate(wanted_RM, sorted_RM), rows, strict=True):
        for place, index in zip(place_M.tolist(), wanted, strict=True):
            assert place == (sorted(there).index(index) if index in there else len(there))


def sets_of(m: int) -> st.SearchStrategy:
    indices = st.lists(st.integers(0, 20), min_size=m, max_size=m, unique=True)
    return st.tuples(indices, indices)


SCORES = st.sampled_from([0.0, 1e-45, 0.5, 1.0, 1.0000001, 3e38, float("inf"), float("nan")])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@settings(max_examples=80)
@given(data=st.data())
def test_largest_takes_the_lower_index_of_equals(dtype: torch.dtype, data: st.DataObject) -> None:
    width = data.draw(st.integers(1, 12))
    count = data.draw(st.integers(1, width))
    scores = data.draw(st.lists(SCORES, min_size=width, max_size=width))
    indices = data.draw(st.permutations(range(2**31, 2**31 + width)))
    forbidden = data.draw(st.integers(0, width - count))

    def rank(i: int) -> tuple[bool, float, int]:
        number = torch.tensor(scores[i], dtype=dtype).item()
        return number == number, -number if number == number else 0, indices[i]

    allowed = range(forbidden, width)
    best = sorted(sorted(allowed, key=rank)[:count])
    score_RN = torch.tensor([scores], dtype=dtype)
    score_RN[0, :forbidden] = -1
    taken = largest(score_RN, torch.tensor([indices]), count)
    assert sorted(taken[0].tolist()) == best
