"""The cost of a step, and its equality with Adam at full density."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from so_clip import SO
from so_clip.optim.functional import Moments, so
from so_clip.optim.rates import Rates, Rule

NUMEL, TENSORS, COUNT = 40_000, 12, 200


class Watched(TorchDispatchMode):
    """Records the operations that run and the largest storage that they allocate."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.operations: list[str] = []
        self.largest = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.append(func.overloadpacket.__name__)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.known:
                    self.largest = max(self.largest, storage.nbytes())
        return result


def watched_steps(steps: int, device: str = "cpu", **options: Any) -> Watched:
    """Take some steps over two sizes of tensors, all but the first two watched."""
    shapes = [(200, 200)] * TENSORS + [(100, 100)] * TENSORS
    params = [nn.Parameter(torch.zeros(shape, device=device)) for shape in shapes]
    optimizer = SO(params, density_ratio=COUNT / NUMEL, T=2, **options)
    for param in params:
        param.grad = torch.randn(param.shape, device=device)
    for _ in range(2):
        optimizer.step()
    with Watched([*params, *(param.grad for param in params)]) as watched:
        for _ in range(steps):
            optimizer.step()
    return watched


@pytest.mark.parametrize("bias_correction", ["step", "age"])
@pytest.mark.parametrize("order", ["prune_first", "update_first"])
def test_no_step_waits_or_allocates_more_than_its_samples(order: str, bias_correction: str) -> None:
    # Five steps at T = 2: two redraws are among them.
    watched = watched_steps(5, order=order, bias_correction=bias_correction, weight_decay=0.1)
    waits = {"item", "_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"}
    waits |= {"unique_dim", "_unique2", "unique_consecutive", "bincount", "repeat_interleave"}
    assert not waits & set(watched.operations)
    assert "randperm" not in watched.operations
    # The union of one batch, 8 bytes each: neither numel nor M².
    assert watched.largest <= 2 * COUNT * TENSORS * 8


def test_the_number_of_calls_does_not_grow_with_the_tensors() -> None:
    watched = watched_steps(1)
    # Each tensor has its gradient read and its weight written; the rest is for all at once.
    # promote_types computes nothing.
    per_tensor = {"take", "view", "index_add_", "unbind", "promote_types"}
    others = [name for name in watched.operations if name not in per_tensor]
    assert watched.operations.count("take") == watched.operations.count("index_add_") == 24
    assert len(others) < 2 * 60


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("order", ["prune_first", "update_first"])
def test_no_step_waits_for_the_gpu(order: str) -> None:
    watched_steps(4, "cuda", order=order)
    torch.cuda.set_sync_debug_mode("error")
    try:
        watched_steps(4, "cuda", order=order)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_draws_and_keeps_the_same_entries_as_the_cpu() -> None:
    results = []
    for device in ("cpu", "cuda"):
        draw = torch.Generator().manual_seed(0)
        params = [nn.Parameter(torch.randn(50, 40, generator=draw).to(device)) for _ in range(3)]
        optimizer = SO(params, density_ratio=0.02, T=3)
        for _ in range(20):
            for param in params:
                param.grad = torch.randn(50, 40, generator=draw).to(device)
            optimizer.step()
        results.append((params, [optimizer.state[param]["index"] for param in params]))
    for one, other in zip(*(params for params, _ in results), strict=True):
        torch.testing.assert_close(one, other.cpu())
    for one, other in zip(*(indices for _, indices in results), strict=True):
        assert set(one.tolist()) == set(other.tolist())


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("order", ["prune_first", "update_first"])
@pytest.mark.parametrize("has_ages", [False, True])
def test_a_support_of_all_entries_is_adam(has_ages: bool, order: str, foreach: bool) -> None:
    n = 30
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(n, generator=draw, dtype=torch.float64)
    ours, adams = nn.Parameter(weight.clone()), nn.Parameter(weight.clone())
    adam = torch.optim.Adam([adams], lr=0.01, weight_decay=0.1)
    rule = Rule(0.01, 0.9, 0.999, 1e-8, 0.1, order, "importance", maximize=False)
    everything_RM = torch.arange(n)[None]
    zero_RM = torch.zeros(1, n, dtype=torch.float64)
    ages_RM = torch.zeros(1, n, dtype=torch.int32) if has_ages else None
    moments = Moments(
        everything_RM.clone(), everything_RM.clone(), zero_RM, zero_RM.clone(), ages_RM
    )
    for step in range(1, 40):
        grad = torch.randn(n, generator=draw, dtype=torch.float64)
        adams.grad = grad.clone()
        adam.step()
        with torch.no_grad():
            so(
                [ours],
                [grad],
                everything_RM,
                moments,
                rule=rule,
                rates=Rates.at(rule, step),
                generator=draw,
                foreach=foreach,
            )
        torch.testing.assert_close(ours, adams, rtol=0, atol=1e-13)
