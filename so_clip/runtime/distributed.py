"""Data parallelism: processes started by torchrun that take each training step together.

    torchrun --nproc-per-node 2 -m so_clip dataset=imagenet ...

All draw the same batches, and each computes the gradients of its part of the images. These are
averaged, whole or sampled, so that every process takes the very step that one alone would have
taken, but for rounding. The first also does all else: zero-shot, evaluation, files; the others wait
for it, and end when training does.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from so_clip.errors import InputError
from so_clip.optim.gradients import sampled_gradient
from so_clip.runtime.device import pick_device
from so_clip.system import torchrun as launched

# As long as an evaluation may take, for which all but one process wait. Should that one die,
# torchrun ends the others.
_PATIENCE = timedelta(days=7)


class Ranks:
    """The processes of a run; by default there is but this one, and nothing here does anything.

    Args:
        rank: this process's number.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self._told = False

    @property
    def first(self) -> bool:
        """Whether this is the process that evaluates and writes."""
        return self.rank == 0

    def part(self, images_BCHW: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return this process's images and labels of a batch.

        Where there are fewer images than processes, some get the first one, of no weight.
        """
        if self.size == 1:
            return images_BCHW, labels_B
        start, stop = self._bounds(len(labels_B))
        own = slice(start, stop) if start < stop else slice(1)
        return images_BCHW[own], labels_B[own]

    def weighted(self, loss: Tensor, images: int) -> Tensor:
        """Return the mean loss of `part` so weighted that the processes' average is the batch's.

        Args:
            images: in the whole batch.
        """
        if self.size == 1:
            return loss
        start, stop = self._bounds(images)
        return loss * (self.size * (stop - start) / images)

    @torch.no_grad()
    def average_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Average all gradients over the processes, in place; sampled ones stay sampled.

        The optimizer must be the same everywhere, so that supports are, too.
        """
        if self.size == 1:
            return
        params = chain.from_iterable(group["params"] for group in optimizer.param_groups)
        grads = [
            grad
            for param in params
            for grad in (param.grad, sampled_gradient(param))
            if grad is not None
        ]
        self._average(grads)

    def average(self, value: Tensor) -> Tensor:
        """Return the processes' average of a value."""
        if self.size == 1:
            return value
        mean = value.clone()
        self._average([mean])
        return mean

    @torch.no_grad()
    def agree(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the first one's values, in place."""
        if self.size > 1:
            for tensor in tensors:
                same = tensor.detach().contiguous()
                dist.broadcast(same, src=0)
                tensor.copy_(same)

    def check_same(self, what: str, value: Any) -> None:
        """Raise InputError in all processes unless all have the same value."""
        if self.size == 1:
            return
        values = [None] * self.size
        dist.all_gather_object(values, value)
        if any(each != values[0] for each in values):
            raise InputError(
                f"torchrun's processes do not find the same {what}: {values}. All machines need "
                "the same results_dir, data and version of so_clip."
            )

    def tell(self, value: Any) -> None:
        """Tell the others what they are waiting for: what to take part in, or None for nothing."""
        if self.size > 1 and not self._told:
            self._told = True
            dist.broadcast_object_list([value], src=0)

    def hear(self) -> Any:
        """Wait for what the first process tells."""
        told = [None]
        dist.broadcast_object_list(told, src=0)
        return told[0]

    def _bounds(self, images: int) -> tuple[int, int]:
        return self.rank * images // self.size, (self.rank + 1) * images // self.size

    def _average(self, tensors: list[Tensor]) -> None:
        whole = [tensor.contiguous() for tensor in tensors]
        waiting = [dist.all_reduce(each, async_op=True) for each in whole]
        for tensor, each, work in zip(tensors, whole, waiting, strict=True):
            work.wait()
            each.div_(self.size)
            if each is not tensor:
                tensor.copy_(each)


ALONE = Ranks()


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the other processes of the run, if torchrun has started any.

    Args:
        device: the run's setting. CUDA means a GPU of its own for each process.

    Raises:
        InputError: there are more processes than GPUs, or all were to use the same.
    """
    size = launched.processes()
    if size == 1:
        yield ALONE
        return
    cuda = pick_device(device).type == "cuda"
    if cuda:
        _take_gpu(device)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=_PATIENCE)
    ranks = Ranks(launched.rank(), size)
    try:
        yield ranks
    finally:
        if ranks.first:
            with suppress(RuntimeError):  # the others may have failed as well, and be gone
                ranks.tell(None)  # unless training was begun
        dist.destroy_process_group()


def _take_gpu(device: str) -> None:
    own, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if ":" in device:
        raise InputError(
            f"device={device}: torchrun's processes need a GPU each. Leave the option out; "
            "CUDA_VISIBLE_DEVICES says which GPUs there are."
        )
    if own >= count:
        raise InputError(
            f"torchrun has started more processes than the {count} GPUs here: lower "
            "--nproc-per-node, or use device=cpu."
        )
    torch.cuda.set_device(own)
