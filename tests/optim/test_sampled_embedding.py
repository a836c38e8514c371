"""Sampled gradients of embeddings: exact, without a gradient of the whole table."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from so_clip import SO
from so_clip.optim.sampled import SampledEmbedding, SampledGradient, sampled_gradients
from so_clip.optim.sampled_embedding import entries_of_embedding, sampled_embedding
from so_clip.optim.sampled_record import sampled_record
from tests.helpers.sampled_pairs import assert_equal, assert_sampled, filled, generator, twins

# The table's rows, and the shape of the ids: fewer and more tokens than rows.
CASES = [(50, (4, 7)), (6, (4, 7)), (50, ()), (50, (0,)), (9, (9,)), (300, (1, 5, 2))]


def ids_of(shape: tuple[int, ...], rows: int, seed: int = 3) -> Tensor:
    return torch.randint(rows, shape, generator=generator(seed))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("padding", [None, 0, 5])
@pytest.mark.parametrize(("rows", "shape"), CASES)
def test_entries_are_the_sums_over_their_tokens(rows, shape, padding, dtype) -> None:
    layer = filled(nn.Embedding(rows, 6, padding_idx=padding)).to(dtype)
    dense = nn.Embedding(rows, 6, padding_idx=padding, dtype=dtype)
    dense.load_state_dict(layer.state_dict())
    optimizer = SO(layer.parameters(), density_ratio=0.4)
    sampled_gradients(layer, optimizer)
    ids = ids_of(shape, rows)
    grad = torch.randn(*shape, 6, generator=generator()).to(dtype)
    for module in (layer, dense):
        y = module(ids)
        assert torch.equal(y, layer.weight[ids])
        y.backward(grad)

    exact = np.zeros((rows, 6))
    sizes = np.zeros((rows, 6))
    for token, row in zip(ids.flatten().tolist(), grad.double().reshape(-1, 6), strict=True):
        if token != padding:
            exact[token] += row.numpy()
            sizes[token] += row.abs().numpy()
    support = optimizer.support(layer.weight)
    values = layer.weight.grad.values_M
    assert values.dtype == torch.promote_types(dtype, torch.float32)
    error = np.abs(values.double().numpy() - exact.take(support.numpy()))
    tolerance = 1e-14 if dtype == torch.float64 else 1e-6
    assert (error <= tolerance * sizes.take(support.numpy())).all()
    if dtype != torch.bfloat16:  # otherwise the dense sums are rounded
        assert torch.equal(values, dense.weight.grad.take(support))


class Largest(TorchDispatchMode):
    """Finds the largest tensor of floats that an operation makes."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        floats = [leaf.numel() for leaf in made if leaf.is_floating_point()]
        self.numel = max(self.numel, *floats, 0)
        return result


@pytest.mark.parametrize("is_sampled", [True, False])
def test_no_gradient_of_the_whole_table_exists(is_sampled) -> None:
    layer = filled(nn.Embedding(5000, 8))
    optimizer = SO(layer.parameters(), density_ratio=1e-3)
    if is_sampled:
        sampled_gradients(layer, optimizer)
    y = layer(ids_of((4, 10), 5000)).square().sum()
    with Largest() as largest:
        y.backward()
    assert largest.numel == (40 * 8 if is_sampled else 5000 * 8)


def test_the_operator_makes_no_whole_table() -> None:
    with Largest() as largest:  # it sees no operations inside of a custom operator
        entries_of_embedding(torch.ones(40, 8), ids_of((40,), 5000), torch.tensor([7]), 5000, -1)
    assert largest.numel == 41 * 8


class Sentences(nn.Module):
    """Words and positions, and a product with the table of words, as in a language model."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 12, padding_idx=0)
        self.positions = nn.Embedding(8, 12)
        self.mix = nn.Linear(12, 12)
        self.decoder = nn.Linear(12, 40, bias=False)
        self.decoder.weight = self.words.weight

    def forward(self, ids_BL: Tensor) -> Tensor:
        places_1L = torch.arange(ids_BL.shape[1])[None]
        y_BLD = self.mix(self.words(ids_BL) + self.positions(places_1L))
        y_BLD = y_BLD + self.words(ids_BL.flip(0)) * self.words.weight.mean()
        return self.decoder(y_BLD.tanh())


@pytest.mark.parametrize("T", [1, 3])
def test_training_equals_that_with_dense_gradients(T: int) -> None:
    (dense, by_dense), (sampled, optimizer) = twins(lambda: filled(Sentences().double()), T=T)
    assert type(sampled.words) is type(sampled.positions) is SampledEmbedding
    for step in range(7):
        for part in range(2):  # gradients of two batches add up
            for module in (dense, sampled):
                module(ids_of((3, 8), 40, seed=10 * step + part)).square().mean().backward()
        if step == 2:
            assert_sampled(sampled, optimizer, dense)
        for by in (by_dense, optimizer):
            by.step()
            by.zero_grad()
    assert_equal(sampled, dense)


def test_under_autocast_the_table_stays_in_float32() -> None:
    def make() -> nn.Module:
        return filled(nn.Sequential(nn.Embedding(40, 12), nn.Linear(12, 12)))

    (dense, _), (sampled, optimizer) = twins(make)
    for module in (dense, sampled):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = module(ids_of((3, 8), 40))
        y.square().mean().backward()
    table = sampled[0].weight
    whole = dense[0].weight.grad
    assert torch.equal(table.grad.values_M, whole.take(optimizer.support(table)))


@pytest.mark.parametrize("option", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
def test_embeddings_with_other_gradients_stay_dense(option: dict[str, Any]) -> None:
    layer = nn.Embedding(40, 12, **option)
    optimizer = SO(layer.parameters(), density_ratio=0.01)
    assert sampled_gradients(layer, optimizer).methods == {}
    reason = sampled_record(optimizer, layer.parameters())["whole_gradients"]
    assert reason == (
        "1: max_norm, scale_grad_by_freq or sparse of Embedding needs the whole gradient"
    )
    layer(ids_of((5,), 40)).sum().backward()
    assert not isinstance(layer.weight.grad, SampledGradient)


@pytest.mark.parametrize(
    ("density", "always", "is_sampled"),
    [(0.05, False, True), (0.1, False, False), (0.1, True, True), (1, True, False)],
)
def test_dense_tables_are_sampled_on_demand_only(density, always, is_sampled) -> None:
    layer = nn.Embedding(40, 12)
    optimizer = SO(layer.parameters(), density_ratio=density)
    methods = sampled_gradients(layer, optimizer, always=always).methods
    assert methods == ({"weight": "tokens"} if is_sampled else {})


def test_torch_accepts_the_operator() -> None:
    arguments = (torch.randn(5, 3), ids_of((5,), 40), torch.tensor([2, 7, 90]), 40, -1)
    torch.library.opcheck(sampled_embedding, arguments)


def test_a_removed_handle_restores_the_embedding() -> None:
    layer = nn.Embedding(40, 12)
    optimizer = SO(layer.parameters(), density_ratio=0.05)
    with sampled_gradients(layer, optimizer):
        assert type(layer) is SampledEmbedding
    assert type(layer) is nn.Embedding
    layer(ids_of((5,), 40)).sum().backward()
    assert not isinstance(layer.weight.grad, SampledGradient)
