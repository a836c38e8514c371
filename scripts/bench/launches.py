"""The operations that a training step dispatches: on a GPU, about the kernels that it launches.

A GPU waits for its host whenever a kernel takes less time than its launch. Operations are counted
without a GPU, on fake tensors of the CPU, in the way that a run takes on a GPU.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from scripts.bench.contenders import (
    CONTENDERS,
    LR,
    Contender,
    Shape,
    T,
    Trainer,
    make_trainer,
    row_head,
)
from scripts.bench.plans import Plan
from scripts.bench.reference_so import ReferenceSO
from so_clip.clip.engine import image_tower
from so_clip.data.crop_products import ImageBlocks
from so_clip.data.transforms import RandomResizedCrop
from so_clip.optim import sampled_product, step_kernel

CPU = torch.device("cpu")
PARTS = ("forward", "backward", "optimizer")
_NAMESPACE = "so_clip"  # of custom operators that are opened
_ALLOCATIONS = ("empty", "new_empty")  # memory without values: nothing is launched


class LaunchCounter(TorchDispatchMode):
    """Counts dispatched operations, real or fake.

    Views are left out: their result shares memory with an argument, and nothing is written. So is
    memory without values. A custom operator of so_clip is not counted itself; the operations inside
    it are. A call for a list of tensors (`_foreach_*`, `_fused_*`) is one operation, though torch
    launches a few kernels for a long list.

    Args:
        part: of the step.

    Attributes:
        counts: the number of each operation, by its part of the step and its name.
        part: for the operations that come next.
    """

    def __init__(self, part: str = "") -> None:
        super().__init__()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.part = part

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == _NAMESPACE:
            with self:
                return OPDEFS[func._schema.name]._init_fn(*args, **kwargs)
        result = func(*args, **kwargs)
        if func.namespace != "prim" and not is_view(func, (args, kwargs), result):
            self.note(func, (args, kwargs), result)
        return result

    def note(self, func: Any, inputs: Any, result: Any) -> None:
        """Count one operation, unless it only allocates."""
        if not func._schema.name.partition("::")[2].startswith(_ALLOCATIONS):
            self.counts[self.part, str(func)] += 1

    def total(self, part: str | None = None) -> int:
        """Return the number of operations in a part of the step; None: in all."""
        return sum(n for (where, _), n in self.counts.items() if part in (None, where))


class DeviceCounter(LaunchCounter):
    """Counts the operations of code that works on the host and on a device.

    The CPU stands for both. A tensor made here from no other tensor is the host's; what the host
    computes is not counted. A copy from the host to the device is one operation. Tensors from
    before are the device's.
    """

    def __init__(self) -> None:
        super().__init__("outside")
        self._alive: list[Any] = []  # so that no address is used again
        self._host: set[int] = set()

    def note(self, func: Any, inputs: Any, result: Any) -> None:
        """Count one operation of the device, and the copies of what it reads from the host."""
        self._alive.append(result)
        read = _storages(inputs)
        if read <= self._host:
            self._host |= _storages(result)
            return
        super().note(func, inputs, result)
        if not func._schema.name.endswith("::copy_"):
            arriving = read & self._host
            self._host -= arriving
            self.counts[self.part, "copy from the host"] += len(arriving)


def is_view(func: Any, inputs: Any, result: Any) -> bool:
    """Return whether an operation only shows the memory of an argument in another way.

    torch's schema says so for most; the memory itself shows it for others (`_unsafe_view`).
    """
    schema = func._schema
    if not _storages((inputs, result)):
        return True  # of no tensor, such as promote_types
    if any(argument.is_write for argument in schema.arguments):
        return False
    if schema.returns and all(returned.alias_info is not None for returned in schema.returns):
        return True
    results = _storages(result)
    return bool(results) and results <= _storages(inputs)


def _storages(values: Any) -> set[int]:
    tensors = (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
    return {tensor.untyped_storage()._cdata for tensor in tensors}


@dataclass(frozen=True)
class Launches:
    """Operations of one training step.

    Attributes:
        by_part: of the eager step, for each of PARTS.
        outside: of a replayed step, outside of the graph; None: not counted, or there is none.
        outside_with_draw: the same, when new supports are drawn; of the embedded CLIP.
    """

    by_part: dict[str, int]
    outside: int | None
    outside_with_draw: int | None

    @property
    def step(self) -> int:
        """Operations of the eager step."""
        return sum(self.by_part.values())


def launches(contender: Contender, shape: Shape, *, replays: bool = True) -> Launches:
    """Count the operations of a contender's step in the way that it takes on a GPU.

    Triton's kernel takes SO's step, as one operation.

    Args:
        contender, shape: what to train.
        replays: whether to count replayed steps too.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with ways_of_cuda(), one_kernel():
        trainer = make_trainer(contender, shape, CPU, mode, as_on_cuda=True)
        is_reference = isinstance(trainer.optimizer, ReferenceSO)
        if is_reference:  # its step reads values, so it runs apart
            vars(trainer.optimizer)["step"] = lambda closure=None: None
        with mode:
            trainer.step()
            counter = LaunchCounter()
            with counter:
                for counter.part, run in trainer.parts():
                    run()
            # Fake tensors cannot draw supports, so these steps end before the next draw.
            replays = replays and not is_reference
            outside = max(_outside(trainer, T - 7)) if replays else None
        drawing = max(_outside(_on_tiny(contender), T)) if replays else None
    by_part = {part: counter.total(part) for part in PARTS}
    if is_reference:
        by_part["optimizer"] = _reference_step(len(trainer.parameters()))
    if outside is None or drawing is None:
        return Launches(by_part, None, None)
    crops = crop_operations(shape.batch)
    return Launches(by_part, crops + outside, crops + drawing)


def launch_rows(plan: Plan) -> list[dict[str, Any]]:
    """Count the operations of every contender's step for the shapes of several datasets."""
    rows: list[dict[str, Any]] = []
    work = [(dataset, who) for dataset in plan.step_datasets for who in CONTENDERS]
    for dataset, contender in tqdm(work, "launches", unit="step", dynamic_ncols=True):
        shape = Shape(
            dataset, plan.launch_batch, plan.architecture, precision=plan.launch_precision
        )
        found = launches(contender, shape)
        rows.append(
            {
                **row_head(shape, contender),
                **{f"{part}_operations": found.by_part[part] for part in PARTS},
                "step_operations": found.step,
                "outside_graph_operations": found.outside,
                "outside_graph_draw_operations": found.outside_with_draw,
            }
        )
    adamw = {row["dataset"]: row["step_operations"] for row in rows if row["contender"] == "adamw"}
    for row in rows:
        row["part_of_adamw"] = row["step_operations"] / adamw[row["dataset"]]
    return rows


def crop_operations(batch: int) -> int:
    """Count the operations of a batch of crops, copies to the device included."""
    draw = torch.Generator().manual_seed(0)
    images = [torch.zeros(3, 40 + number, 50, dtype=torch.uint8) for number in range(batch)]
    store, crop = ImageBlocks(images, CPU), RandomResizedCrop(32)
    with DeviceCounter() as counter:
        store.crop(range(batch), crop, draw, torch.arange(batch))
    return counter.total()


class _NoGraph:
    """A recorder of so_clip.capture whose replays do nothing."""

    def training(self) -> AbstractContextManager[None]:
        return nullcontext()

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        return lambda: None

    def release(self) -> None:
        pass


def _on_tiny(contender: Contender) -> Trainer:
    """Return a contender's trainer of the embedded CLIP, with real tensors."""
    return make_trainer(contender, Shape("dtd", 2, "tiny", precision="bf16"), CPU, as_on_cuda=True)


def _outside(trainer: Trainer, steps: int) -> list[int]:
    """Count the operations of replayed steps outside of their graph, for several in a row."""
    step = trainer.captured(_NoGraph(), warm_up_steps=2)
    counts = []
    with step.training():
        for _ in range(4):
            step(*trainer.batch)
        for _ in range(steps):
            with DeviceCounter() as counter:
                step(*trainer.batch)
            counts.append(counter.total())
    assert step.outcome == "captured", step.outcome
    return counts


def _reference_step(matrices: int) -> int:
    """Count the reference's optimizer step on small matrices: their number alone matters."""
    params = [nn.Parameter(torch.zeros(8, 8)) for _ in range(matrices)]
    optimizer = ReferenceSO(params, LR, density_ratio=0.1, T=T)
    for _ in range(2):
        for param in params:
            param.grad = torch.ones_like(param)
        with LaunchCounter() as counter:
            optimizer.step()
    return counter.total()


@contextmanager
def ways_of_cuda() -> Iterator[None]:
    """Let the CPU cut batches of images and multiply half-precision matrices as a GPU does."""

    def whole_product(g_NO: Tensor, x_NI: Tensor) -> Tensor:
        if g_NO.dtype == torch.float32 or not isinstance(g_NO, FakeTensor):
            return g_NO.T.float() @ x_NI.float()
        return torch.mm(g_NO.T, x_NI, out_dtype=torch.float32)  # the CPU has it without values

    with (
        patch.object(image_tower, "_CPU_PIECE", image_tower._GPU_PIECE),
        patch.object(sampled_product, "_whole_product", whole_product),
    ):
        yield


@contextmanager
def one_kernel() -> Iterator[None]:
    """Let an operation that writes to all weights stand for Triton's kernel."""

    def step_rows(flat: Tensor, *_: Any, **__: Any) -> None:
        flat.add_(0)

    with (
        patch.object(step_kernel, "available", lambda device: True),
        patch.object(step_kernel, "step_rows", step_rows),
    ):
        yield
