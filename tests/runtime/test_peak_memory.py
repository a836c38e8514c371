"""Peak tensor memory of programs with known byte counts."""

import weakref
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from so_clip.runtime.peak_memory import CATEGORIES, MIB, PeakMemory

CPU = torch.device("cpu")
WEIGHT = 1000  # numbers; 4000 bytes


class OneWeight(nn.Module):
    """A vector w, and the loss sum(w * x)."""

    def __init__(self, size: int = WEIGHT) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return (self.w * x).sum()


def _bytes(peak: PeakMemory) -> dict[str, int]:
    """Return the result in bytes; check that the parts add up and bytes are whole."""
    result = peak.result()
    assert set(result) == {"peak_memory_mib", *(f"{name}_mib" for name in CATEGORIES)}
    parts = {name: result[f"{name}_mib"] * MIB for name in CATEGORIES}
    assert all(value == int(value) for value in parts.values())
    assert result["peak_memory_mib"] * MIB == sum(parts.values())
    return {name: int(value) for name, value in parts.items()}


def _activations(program: Callable[[], object]) -> int:
    with PeakMemory(OneWeight(), None, CPU) as peak:
        program()
    parts = _bytes(peak)
    assert (parts["weights"], parts["gradients"], parts["optimizer_state"]) == (4000, 0, 0)
    return parts["activations"]


def _sequential() -> None:
    for _ in range(50):
        torch.zeros(500)


def _simultaneous() -> list[Tensor]:
    return [torch.zeros(500) for _ in range(50)]


def _grow_and_shrink() -> None:
    a = torch.zeros(500)
    b = torch.zeros(250)  # 3000 bytes
    del a
    c = torch.zeros(300)  # 2200
    del b
    d = torch.zeros(500)  # 3200
    del c, d
    torch.zeros(700)  # 2800


def _views() -> None:
    a = torch.zeros(10, 10)
    views = [a[2:], a.view(100), a.t(), a.expand(5, 10, 10), a.detach()]
    del a
    b = torch.zeros(50)  # beside the 400 bytes that the views keep
    del b, views
    torch.zeros(100)


def _in_place() -> None:
    a = torch.zeros(100)
    a.add_(1).mul_(2)
    a[:50].fill_(3)
    torch.add(a, a, out=a)


def _several_results() -> None:
    results = torch.zeros(100).max(dim=0), torch.zeros(10, 10).sort(dim=1)
    del results


def _types() -> None:
    tensors = [
        torch.zeros(10, dtype=dtype)
        for dtype in (torch.uint8, torch.bool, torch.float16, torch.bfloat16, torch.int64)
    ]
    del tensors


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (lambda: None, 0),
        (lambda: torch.zeros(500), 2000),
        (lambda: torch.empty(500), 2000),
        (lambda: torch.zeros(()), 4),
        (_sequential, 2000),
        (_simultaneous, 100_000),
        (_grow_and_shrink, 3200),
        (_views, 600),
        (_in_place, 400),
        # 400 before; then 100 x float and int64 beside the maximum's 4 and 8, and the input's 400
        (_several_results, 4 + 8 + 400 + 400 + 800),
        (_types, 10 + 10 + 20 + 20 + 80),
    ],
)
def test_the_peak_of_a_program_equals_a_count_by_hand(program, expected):
    assert _activations(program) == expected


def test_resized_storages_are_counted_at_their_new_size():
    def program() -> None:
        a = torch.empty(0)
        a.resize_(500)
        a.fill_(1)
        b = torch.empty(0)
        torch.add(a, a, out=b)

    assert _activations(program) == 4000


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 50)), max_size=20))
def test_the_peak_of_random_programs_equals_a_count(assignments):
    slots: dict[int, Tensor] = {}
    sizes = dict.fromkeys(range(4), 0)
    expected = 0
    with PeakMemory(OneWeight(), None, CPU) as peak:
        for slot, size in assignments:
            # The old value lives until the new one takes its name.
            expected = max(expected, sum(sizes.values()) + 4 * size)
            slots[slot] = torch.zeros(size)
            sizes[slot] = 4 * size
    assert _bytes(peak)["activations"] == expected


def test_older_tensors_other_than_weights_are_not_counted():
    model = nn.Sequential(nn.Linear(10, 5), nn.BatchNorm1d(5))
    x = torch.zeros(1_000_000)
    with PeakMemory(model, None, CPU) as peak:
        x.add_(1)
        views = x[10:].view(-1, 2), x.detach()
        del views
    # 50 + 5 of the layer; 5 scales, shifts, means and variances each; a 64-bit counter
    assert _bytes(peak) == {
        "weights": 4 * (55 + 20) + 8,
        "gradients": 0,
        "optimizer_state": 0,
        "activations": 0,
    }


def test_shared_weights_count_once():
    model = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False))
    model[1].weight = model[0].weight
    with PeakMemory(model, None, CPU) as peak:
        pass
    assert _bytes(peak)["weights"] == 400


def _steps(optimizer_of: Callable[[list[nn.Parameter]], torch.optim.Optimizer], steps: int):
    model, x = OneWeight(), torch.ones(WEIGHT)
    optimizer = optimizer_of(list(model.parameters()))
    with PeakMemory(model, optimizer, CPU) as peak:
        for _ in range(steps):
            model(x).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return _bytes(peak)


def test_a_plain_step_has_weights_and_gradients():
    parts = _steps(lambda params: torch.optim.SGD(params, lr=1, foreach=False), 2)
    # The gradient is alive together with the loss and backward's first gradient, 1.
    assert parts == {
        "weights": 4000,
        "gradients": 4000,
        "optimizer_state": 0,
        "activations": 8,
    }


def test_momentum_is_optimizer_state():
    parts = _steps(lambda params: torch.optim.SGD(params, lr=1, momentum=0.9, foreach=False), 2)
    assert (parts["weights"], parts["gradients"], parts["optimizer_state"]) == (4000, 4000, 4000)
    assert parts["activations"] < 100


def test_adam_has_two_moments_and_a_counter():
    parts = _steps(lambda params: torch.optim.AdamW(params, lr=1e-3, foreach=False), 3)
    assert parts["weights"] == parts["gradients"] == 4000
    assert parts["optimizer_state"] == 2 * 4000 + 4
    # The root of the second moment, and once more divided by the bias correction.
    assert 4000 <= parts["activations"] <= 2 * 4000 + 100


def test_older_optimizer_state_counts_from_the_start():
    model, x = OneWeight(), torch.ones(WEIGHT)
    optimizer = torch.optim.SGD(model.parameters(), lr=1, momentum=0.9)
    model(x).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    with PeakMemory(model, optimizer, CPU) as peak:
        pass
    assert _bytes(peak)["optimizer_state"] == 4000


def test_the_states_of_several_optimizers_count():
    model = nn.ModuleList([OneWeight(), OneWeight()])
    optimizers = [
        torch.optim.SGD(part.parameters(), lr=1, momentum=0.9, foreach=False) for part in model
    ]
    with PeakMemory(model, optimizers, CPU) as peak:
        for part, optimizer in 2 * [*zip(model, optimizers, strict=True)]:
            part(torch.ones(WEIGHT)).backward()
            optimizer.step()
    assert _bytes(peak)["optimizer_state"] == 2 * 4000
    assert not any(optimizer._optimizer_step_post_hooks for optimizer in optimizers)


def test_frozen_weights_have_no_gradients():
    model = nn.Sequential(nn.Linear(100, 100, bias=False), nn.Linear(100, 1, bias=False))
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([model[1].weight], lr=1)
    with PeakMemory(model, optimizer, CPU) as peak:
        model(torch.ones(1, 100)).sum().backward()
    assert _bytes(peak)["gradients"] == 400


def test_tensors_saved_for_backward_are_activations():
    model = nn.Sequential(nn.Linear(10, 1000, bias=False), *(nn.Sigmoid() for _ in range(3)))
    x = torch.ones(1, 10)
    with PeakMemory(model, None, CPU) as peak, torch.no_grad():
        model(x)
    assert _bytes(peak)["activations"] == 2 * 4000  # input and output of a layer
    with PeakMemory(model, None, CPU) as peak:
        model(x)
    assert _bytes(peak)["activations"] == 3 * 4000  # the outputs of the sigmoids


def test_it_keeps_no_tensor_alive_and_stops_at_the_end_of_the_context():
    model = OneWeight()
    optimizer = torch.optim.SGD(model.parameters(), lr=1)
    with PeakMemory(model, optimizer, CPU) as peak:
        tensor = torch.zeros(10)
        storage = weakref.ref(tensor.untyped_storage())
        del tensor
        assert storage() is None
    before = _bytes(peak)
    torch.zeros(100_000)
    model(torch.ones(WEIGHT)).backward()
    optimizer.step()
    assert _bytes(peak) == before
    assert not model.w._post_accumulate_grad_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_errors_propagate_and_hooks_are_removed():
    model = OneWeight()
    peak = PeakMemory(model, None, CPU)

    def fail() -> None:
        with peak:
            torch.zeros(500)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert _bytes(peak)["activations"] == 2000
    assert not model.w._post_accumulate_grad_hooks


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_total_comes_from_the_allocator():
    device = torch.device("cuda")
    model = OneWeight(1_000_000).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1, momentum=0.9)
    x = torch.ones(1_000_000, device=device)
    with PeakMemory(model, optimizer, device) as peak:
        for _ in range(2):
            model(x).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    allocated = torch.cuda.max_memory_allocated(device)
    torch.zeros(10_000_000, device=device)  # after the context: not counted
    result = peak.result()
    assert result["peak_memory_mib"] * MIB == allocated
    assert sum(result[f"{name}_mib"] for name in CATEGORIES) == pytest.approx(
        result["peak_memory_mib"]
    )
    for name in ("weights", "gradients", "optimizer_state"):
        assert result[f"{name}_mib"] * MIB == 4_000_000
