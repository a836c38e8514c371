"""The counter of operations counts right, and SO's step on a GPU has few of them."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scripts.bench.contenders import ADAMW, ENGINE, LORA, REFERENCE, Shape
from scripts.bench.graphs import busy_microseconds
from scripts.bench.launches import (
    CPU,
    DeviceCounter,
    LaunchCounter,
    crop_operations,
    launches,
    one_kernel,
)
from so_clip.optim.sampled_product import sampled_product

TINY = Shape("eurosat", 2, "tiny", precision="bf16")


def counted(run) -> int:
    with LaunchCounter() as counter:
        run()
    return counter.total()


def test_views_and_memory_without_values_are_not_counted() -> None:
    x = torch.ones(4, 6)
    assert counted(lambda: x.T.reshape(2, 12).contiguous()) == 1  # one copy
    assert counted(lambda: (x.view(-1)[3:].expand(2, -1), x.chunk(3), x.detach())) == 0
    assert counted(lambda: torch.empty(3)) == 0
    assert counted(lambda: x[0].add_(1)) == 1  # it writes to a view
    assert counted(lambda: x @ x.T) == 1
    assert counted(lambda: torch._foreach_add_([x, x], 1)) == 1


def test_operators_of_so_clip_are_opened() -> None:
    g_NO, x_NI, support_M = torch.ones(5, 3), torch.ones(5, 4), torch.tensor([0, 7])
    inside = counted(lambda: sampled_product(g_NO, x_NI, support_M, 4, "whole"))
    assert inside == 2  # product and take


def test_a_copy_from_the_host_is_one_operation_and_the_hosts_own_work_is_none() -> None:
    on_device = torch.zeros(3)
    with DeviceCounter() as counter:
        numbers = torch.ones(3) * 2 + 1
        on_device.copy_(numbers)
    assert counter.total() == 1
    with DeviceCounter() as counter:
        numbers = torch.ones(3) * 2
        on_device.add_(numbers).mul_(numbers)
    assert counter.total() == 3  # the copy, and both operations
    assert crop_operations(4) == 8


@pytest.mark.slow
@pytest.mark.parametrize("contender", [ADAMW, LORA, REFERENCE])
def test_a_rivals_operations_are_those_of_a_real_step(contender) -> None:
    from scripts.bench.contenders import make_trainer

    class Every(TorchDispatchMode):
        """Counts by another rule: a result with memory of its own, or something written."""

        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            def storages(values):
                leaves = torch.utils._pytree.tree_leaves(values)
                return {x.data_ptr() for x in leaves if isinstance(x, torch.Tensor)}

            before = storages((args, kwargs))
            result = func(*args, **(kwargs or {}))
            is_empty = "empty" in func.overloadpacket.__name__
            makes = bool(storages(result) - before) and not is_empty
            view = func.is_view or func.overloadpacket.__name__ in ("_unsafe_view", "detach")
            self.count += func._schema.is_mutable or (makes and not view)
            return result

    trainer = make_trainer(contender, TINY, CPU, as_on_cuda=True)
    trainer.step()
    with Every() as every:
        trainer.step_without_times()
    found = launches(contender, TINY, replays=False)
    # Empty tensors have no address of their own.
    assert every.count == pytest.approx(found.step, rel=0.02)


@pytest.mark.slow
def test_so_has_few_more_operations_than_adamw_in_a_small_step() -> None:
    """The bound for each layer; the text tower has 2 layers here, the image tower 4."""
    adamw, so = (launches(contender, TINY, replays=False) for contender in (ADAMW, ENGINE))
    assert so.by_part["optimizer"] <= 2
    assert so.step <= 1.05 * adamw.step


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["eurosat", "imagenet"])
def test_so_has_few_more_operations_than_adamw(dataset: str) -> None:
    shape = Shape(dataset, 32, "ViT-B-16-quickgelu", precision="bf16")
    adamw, so = (launches(contender, shape) for contender in (ADAMW, ENGINE))
    assert so.step <= 1.05 * adamw.step
    assert so.outside is not None
    assert so.outside <= 10


def test_the_kernel_stands_only_inside_its_context() -> None:
    from so_clip.optim import step_kernel

    before = step_kernel.step_rows
    with one_kernel():
        assert step_kernel.available(CPU)
        assert step_kernel.step_rows is not before
    assert step_kernel.step_rows is before


def test_overlapping_kernels_count_once() -> None:
    class Event:
        def __init__(self, start: float, end: float) -> None:
            self.time_range = type("Range", (), {"start": start, "end": end})

    events = [Event(0, 4), Event(1, 2), Event(3, 6), Event(10, 11)]
    assert busy_microseconds(events) == 7  # type: ignore[arg-type]
