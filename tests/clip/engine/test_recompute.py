import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from so_clip.clip.engine.activation import QuickGELU
from so_clip.clip.engine.recompute import in_matmul_precision, recomputed
from tests.helpers.kept_tensors import OwnLinear, kept_bytes

WIDTH = 6


class ThreeLinears(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([part(x) for part in self.parts]).prod(0)


class PartsAndSquares(nn.Module):
    """Keeps views of its input, transposed and from the middle, and what is no view of it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, 3))

    def forward(self, x: Tensor) -> Tensor:
        return (x[..., 1:4] @ self.weight[:3]) + (x.mT[..., 2:5, :] ** 2).mT + x.sin()[..., :3]


CHEAP: dict[str, Callable[[], Any]] = {
    "norm": lambda: nn.LayerNorm(WIDTH),
    "gelu": nn.GELU,
    "quick gelu": QuickGELU,
    "a view of something larger": lambda: lambda x: torch.cat([x, x.sin()], -1)[..., 2 : 2 + WIDTH],
    "itself": lambda: lambda x: x,
}
COSTLY: dict[str, Callable[[], Any]] = {
    "linear": lambda: nn.Linear(WIDTH, 4),
    "a linear layer of its own kind": lambda: OwnLinear(WIDTH, 4),
    "three linears": ThreeLinears,
    "views": PartsAndSquares,
    "with dropout": lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(WIDTH, 4)),
    "three outputs": lambda: lambda x: x.square().chunk(3, -1)[1],
}


def modules(*item: Any) -> nn.ModuleList:
    return nn.ModuleList(module for module in item if isinstance(module, nn.Module))


def gradients(
    run: Callable[[Tensor], Tensor], x: Tensor, parameters: list[nn.Parameter], times: int = 1
) -> list[Tensor]:
    """The output, and the gradients of a loss that weighs every value differently."""
    torch.manual_seed(1)  # for dropout
    y = run(x)
    loss = (y * torch.linspace(1, 2, y.numel()).view(y.shape)).sum()
    for _ in range(times):
        inputs = [value for value in (x, *parameters) if value.requires_grad]
        grads = torch.autograd.grad(loss, inputs, retain_graph=times > 1, allow_unused=True)
    return [y.detach(), *(grad for grad in grads if grad is not None)]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for item, other in zip(found, expected, strict=True):
        torch.testing.assert_close(item, other, rtol=0, atol=0)


@settings(max_examples=40)
@given(
    cheap=st.sampled_from([*CHEAP]),
    costly=st.sampled_from([*COSTLY]),
    shape=st.lists(st.integers(6, 8), min_size=1, max_size=2),
    needs_x=st.booleans(),
    nested=st.sampled_from(["", "checkpoint", "itself"]),
    times=st.integers(1, 2),
)
def test_the_numbers_are_those_of_a_plain_pass(
    cheap: str, costly: str, shape: list[int], needs_x: bool, nested: str, times: int
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = CHEAP[cheap](), COSTLY[costly]()
        parameters = [*modules(first, second).parameters()]
        x = torch.randn(*shape, WIDTH, requires_grad=needs_x or not parameters)

        def run(x: Tensor) -> Tensor:
            return recomputed(first, second, x)

        def outer(x: Tensor) -> Tensor:
            if nested == "checkpoint":
                return checkpoint(run, x, use_reentrant=False)
            return recomputed(lambda x: x * 2, run, x) if nested else run(x)

        def plain(x: Tensor) -> Tensor:
            return second(first(x * 2 if nested == "itself" else x))

        expected = gradients(plain, x, parameters, times)
        assert_equal(gradients(outer, x, parameters, times), expected)


def test_only_the_input_of_the_cheap_part_is_kept() -> None:
    norm, linear = nn.LayerNorm(64), nn.Linear(64, 32)
    x = torch.randn(10, 64, requires_grad=True)
    known = [x, *norm.parameters(), *linear.parameters()]
    y, statistics = 10 * 32 * 4, 2 * 10 * 4
    assert kept_bytes(lambda: linear(norm(x)), known) == y + statistics + 10 * 64 * 4
    assert kept_bytes(lambda: recomputed(norm, linear, x), known) == y + statistics


@pytest.mark.parametrize("recording", [True, False])
def test_the_costly_part_runs_once_and_the_cheap_part_again_if_needed(recording: bool) -> None:
    counts = {"cheap": 0}

    def cheap(x: Tensor) -> Tensor:
        counts["cheap"] += 1
        return x.exp()

    three, frozen = ThreeLinears(), nn.Linear(WIDTH, 4).requires_grad_(False)
    for part in three.parts:
        part.__class__ = OwnLinear
    x = torch.randn(3, WIDTH, requires_grad=True)
    with torch.set_grad_enabled(recording):
        y = recomputed(cheap, three, x)
        y_of_frozen = recomputed(cheap, frozen, x)
    if recording:
        (y.sum() + y_of_frozen.sum()).backward()
    assert counts["cheap"] == 2 + 3 * recording  # the frozen layer does not need its input
    assert [part.forwards for part in three.parts] == [1, 1, 1]


def test_no_activation_outlives_the_loss() -> None:
    linear, x = nn.Linear(WIDTH, WIDTH), torch.randn(3, WIDTH, requires_grad=True)
    gc.collect()
    gc.disable()
    try:
        for backward in (True, False):
            made: list[weakref.ref[Tensor]] = []

            def cheap(x: Tensor, made: list[Any] = made) -> Tensor:
                y = x.exp()
                made.append(weakref.ref(y))
                return y

            loss = recomputed(cheap, lambda x: linear(x).exp().sigmoid(), x).sum()
            if backward:
                loss.backward()
            del loss
            assert len(made) == 1 + backward
            assert all(reference() is None for reference in made)
    finally:
        gc.enable()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_backward_pass_restores_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm, linear = nn.LayerNorm(64), nn.Linear(64, 32)
    parameters = [*norm.parameters(), *linear.parameters()]
    x = torch.randn(10, 64, requires_grad=True)

    def rounded(x: Tensor) -> Tensor:
        # Under autocast the product has half precision, in the recomputation too.
        return in_matmul_precision(norm(x @ x.T @ x))

    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype):
            return recomputed(rounded, linear, x)

    def plain(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype):
            return linear(rounded(x))

    expected = gradients(plain, x, parameters)
    assert expected[0].dtype == dtype
    assert_equal(gradients(run, x, parameters), expected)
    with torch.autocast("cpu", dtype):
        assert in_matmul_precision(x).dtype == dtype
        assert in_matmul_precision(x.double()).dtype == torch.float64
    assert in_matmul_precision(x) is x


@pytest.mark.slow
def test_it_compiles() -> None:
    norm, linear = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4)
    parameters = [*norm.parameters(), *linear.parameters()]
    x = torch.randn(3, WIDTH, requires_grad=True)

    def run(x: Tensor) -> Tensor:
        return recomputed(norm, linear, x)

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    assert_equal(gradients(compiled, x, parameters), gradients(run, x, parameters))


def test_it_runs_on_fake_tensors() -> None:
    with FakeTensorMode():
        norm, linear = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4)
        recomputed(norm, linear, torch.randn(3, WIDTH)).sum().backward()
        assert linear.weight.grad is not None
        assert F.gelu(linear.weight.grad).shape == (4, WIDTH)
