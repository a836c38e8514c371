"""Coordinates of many supports at once against those of one, and what becomes of them."""

import pytest
import torch
from torch import nn

from so_clip import SO
from so_clip.optim.sampled import sampled_gradients
from so_clip.optim.sampled_coordinates import Batch, Kind
from so_clip.optim.sampled_product import coordinates
from so_clip.optim.support import draw_supports
from tests.helpers.dispatched import Dispatched
from tests.helpers.sampled_pairs import filled, generator, inputs

CPU = torch.device("cpu")
KINDS = [
    Kind(5, 7, "columns"),
    Kind(13, 9, "gather"),
    Kind(3, 40, "whole_columns"),
    Kind(16, 40, "whole_columns"),
    Kind(1, 1, "gather"),
]


@pytest.mark.parametrize("kinds", [KINDS, KINDS[:2], KINDS[2:3]])
def test_a_batch_has_the_coordinates_of_each_support(kinds):
    numels = [kind.in_features * 11 for kind in kinds]
    supports = draw_supports(numels, [min(kind.entries, 11) for kind in kinds], generator())
    kinds = [kind._replace(entries=len(m)) for kind, m in zip(kinds, supports, strict=True)]
    batch = Batch(kinds, CPU)
    for _ in range(2):  # the second time with the constants of the first
        for found, kind, support_M in zip(
            batch.coordinates(supports), kinds, supports, strict=True
        ):
            expected = coordinates(support_M, kind.in_features, kind.method)
            assert [*map(torch.Tensor.tolist, found)] == [*map(torch.Tensor.tolist, expected)]


def test_entries_of_a_product_of_columns_are_where_their_coordinates_say():
    (support_M,) = draw_supports([6 * 50], [19], generator())
    g_NO, x_NI = inputs(8, 6), inputs(8, 50, seed=2)
    place_M, column_P = coordinates(support_M, 50, "whole_columns")
    assert len(column_P) == 24
    product_OP = g_NO.T @ x_NI[:, column_P]
    torch.testing.assert_close(product_OP.take(place_M), (g_NO.T @ x_NI).take(support_M))


def _layers() -> nn.Module:
    return filled(nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 64)).double())


@pytest.mark.parametrize("whole", [None, True])
def test_coordinates_are_worked_out_at_the_first_use_and_once_a_draw(whole):
    model = _layers()
    optimizer = SO(model.parameters(), density_ratio=0.01, T=2)
    sampled_gradients(model, optimizer, whole=whole)
    samplings = [model[0].sampling, model[2].sampling]
    assert not any(sampling.coordinates for sampling in samplings)
    seen = []
    for _ in range(4):
        model(inputs(5, 64)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert samplings == [model[0].sampling, model[2].sampling]
        (row_M, _), *others = samplings[0].coordinates.values()
        assert not others
        seen.append(row_M)
    assert seen[0] is not seen[1] is seen[2] is not seen[3]
    for sampling in samplings:
        ((method, found),) = sampling.coordinates.items()
        expected = coordinates(sampling.support_M, sampling.weight.shape[1], method)
        assert all(map(torch.equal, found, expected))


def test_whole_products_of_a_kept_input_need_no_coordinates():
    model = _layers()
    sampled_gradients(model, SO(model.parameters(), density_ratio=0.2), whole=True)
    model(inputs(5, 64)).square().sum().backward()
    assert model[0].sampling.coordinates == {}


def _redraw_in_place(optimizer: SO, model: nn.Module) -> None:
    """Write new supports in the place of the old ones, as a captured training does."""
    for weight in (model[0].weight, model[2].weight):
        old_M = optimizer.support(weight)
        (new_M,) = draw_supports([weight.numel()], [len(old_M)], generator(len(old_M) + 1))
        old_M.copy_(new_M)
    for listener in optimizer._support_listeners:
        listener()


@pytest.mark.parametrize("whole", [None, True])
def test_a_support_that_is_drawn_in_place_keeps_its_tensors_and_gets_new_coordinates(whole):
    model, dense = _layers(), _layers()
    optimizer = SO(model.parameters(), density_ratio=0.01, T=0)
    sampled_gradients(model, optimizer, whole=whole)
    model(inputs(5, 64)).square().sum().backward()
    optimizer.zero_grad()
    samplings = [model[0].sampling, model[2].sampling]
    before = [(s.support_M, *c) for s in samplings for c in s.coordinates.values()]
    values = [[tensor.clone() for tensor in tensors] for tensors in before]
    _redraw_in_place(optimizer, model)
    after = [(s.support_M, *c) for s in samplings for c in s.coordinates.values()]
    for old, kept, new in zip(values, before, after, strict=True):
        assert all(a is b for a, b in zip(kept, new, strict=True))
        assert not any(map(torch.equal, old, new))
    for item in (model, dense):
        item(inputs(5, 64)).square().sum().backward()
    for place in (0, 2):
        weight, support_M = model[place].weight, optimizer.support(model[place].weight)
        expected = dense[place].weight.grad.take(support_M)
        torch.testing.assert_close(weight.grad.values_M, expected)


@pytest.mark.parametrize("whole", [None, True])
def test_gradients_of_a_support_that_was_drawn_in_place_since_are_refused(whole):
    model = _layers()
    optimizer = SO(model.parameters(), density_ratio=0.01, T=0)
    sampled_gradients(model, optimizer, whole=whole)
    outdated = r"drawn again .* Call optimizer\.zero_grad"
    late = model(inputs(5, 64)).square().sum()
    _redraw_in_place(optimizer, model)
    with pytest.raises(RuntimeError, match=outdated):
        late.backward()
    optimizer.zero_grad()
    model(inputs(5, 64)).square().sum().backward()
    _redraw_in_place(optimizer, model)
    with pytest.raises(RuntimeError, match=outdated):  # adds to a gradient on the old support
        model(inputs(5, 64)).square().sum().backward()
    with pytest.raises(RuntimeError, match=outdated):
        optimizer.step()
    optimizer.zero_grad()
    model(inputs(5, 64)).square().sum().backward()
    optimizer.step()


def test_a_redraw_in_place_takes_five_operations_for_all_layers():
    model = filled(nn.Sequential(*[nn.Linear(64, 64) for _ in range(6)]).double())
    optimizer = SO(model.parameters(), density_ratio=0.01, T=0)
    handle = sampled_gradients(model, optimizer, whole=True)
    model(inputs(5, 64)).sum().backward()
    optimizer.zero_grad()
    for _ in range(2):  # the constants are made once
        for layer in model:
            optimizer.support(layer.weight).add_(0)  # grows the version
        with Dispatched() as dispatched:
            handle.refresh()
    assert len(dispatched.names) == 5
    with Dispatched() as dispatched:
        handle.refresh()
    assert dispatched.names == []


def _losses(whole: bool | None, packed: bool, static: bool) -> list[float]:
    """Train under autocast, and check that addresses stay from the first static step on."""
    model = filled(nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64), nn.Linear(64, 8)))
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    layers[0].bias.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = SO(trained, lr=1e-2, density_ratio=0.02, T=3)
    if packed:
        optimizer.pack(torch.bfloat16)
    sampled_gradients(model, optimizer, whole=whole)
    losses, addresses = [], set()
    for step in range(10):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(inputs(9, 64, seed=step, dtype=torch.float32)).float().square().mean()
        losses.append(loss.item())
        loss.backward()
        if static and step == 4:
            optimizer.make_static()
        optimizer.step()
        if step >= 4:
            read = [layer.sampling.support_M for layer in layers]
            for layer in layers:
                read += [t for pair in layer.sampling.coordinates.values() for t in pair]
            addresses.add(tuple(tensor.data_ptr() for tensor in read))
    assert (len(addresses) == 1) == static
    return losses


@pytest.mark.parametrize("whole", [None, True])
def test_copies_and_supports_drawn_in_place_change_no_loss(whole):
    plain = _losses(whole, packed=False, static=False)
    for packed, static in [(True, False), (False, True), (True, True)]:
        assert _losses(whole, packed, static) == plain
