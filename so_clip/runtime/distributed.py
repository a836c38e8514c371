"""Data parallelism: processes started by torchrun that take each training step together.

    torchrun --nproc-per-node 2 -m so_clip dataset=imagenet ...

All processes draw the same batches. Each computes the gradients of its shard of the images. The
gradients, dense or sampled, are then averaged, so that every process takes the step that a single
process would take, up to rounding. The first process also does all other work: zero-shot,
evaluation, files. The other processes wait for it, and end when training ends.
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

from so_clip.errors import FAILED, InputError, RunFailed
from so_clip.optim.sampled_gradient import values_of
from so_clip.runtime.device import pick_device
from so_clip.runtime.peers import (
    Peers,
    ignore_termination,
    raise_termination,
    restore_termination,
)
from so_clip.system import torchrun

# The other processes wait this long for the first one's evaluation. so_clip.runtime.peers ends the
# run much earlier if a process is gone.
_TIMEOUT = timedelta(days=7)


class Ranks:
    """The processes of a run. With one process, the default, every method is a no-op.

    Args:
        rank: the number of this process, from 0.
        size: the number of processes.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self._broadcast_done = False

    @property
    def first(self) -> bool:
        """Whether this process evaluates and writes files."""
        return self.rank == 0

    def shard(self, images_BCHW: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return this process's images and labels of a batch.

        If a batch has fewer images than processes, some processes get its first image. Their loss
        has weight 0; see `weight_loss`.
        """
        if self.size == 1:
            return images_BCHW, labels_B
        start, stop = self._bounds(len(labels_B))
        shard = slice(start, stop) if start < stop else slice(1)
        return images_BCHW[shard], labels_B[shard]

    def weight_loss(self, loss: Tensor, images: int) -> Tensor:
        """Weight a shard's mean loss, so that the processes' average is the batch's mean loss.

        Args:
            loss: the mean over this process's shard.
            images: the number of images in the whole batch.
        """
        if self.size == 1:
            return loss
        start, stop = self._bounds(images)
        return loss * (self.size * (stop - start) / images)

    @torch.no_grad()
    def average_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Average all gradients over the processes, in place. Sampled gradients stay sampled.

        The optimizer must be the same in all processes, so that its supports are the same.
        """
        if self.size == 1:
            return
        parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
        gradients = (values_of(parameter.grad) for parameter in parameters)
        self._average([gradient for gradient in gradients if gradient is not None])

    def average(self, value: Tensor) -> Tensor:
        """Return the average of a value over the processes."""
        if self.size == 1:
            return value
        mean = value.clone()
        self._average([mean])
        return mean

    @torch.no_grad()
    def broadcast_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Copy the first process's values to all processes, in place."""
        if self.size > 1:
            for tensor in tensors:
                value = tensor.detach().contiguous()
                dist.broadcast(value, src=0)
                tensor.copy_(value)

    def check_same(self, name: str, value: Any) -> None:
        """Raise InputError in all processes unless the value is the same in all of them."""
        if self.size == 1:
            return
        values = [None] * self.size
        dist.all_gather_object(values, value)
        if any(other != values[0] for other in values):
            raise InputError(
                f"torchrun's processes do not find the same {name}: {values}. All machines need "
                "the same results_dir, data and version of so_clip."
            )

    def broadcast(self, value: Any) -> None:
        """Send a value from the first process to all others, which wait for it in `receive`.

        The value names the training to take part in; None means there is none. Only the first call
        sends.
        """
        if self.size > 1 and not self._broadcast_done:
            self._broadcast_done = True
            dist.broadcast_object_list([value], src=0)

    def receive(self) -> Any:
        """Wait for the value that the first process broadcasts, and return it."""
        values = [None]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def _bounds(self, images: int) -> tuple[int, int]:
        return self.rank * images // self.size, (self.rank + 1) * images // self.size

    def _average(self, tensors: list[Tensor]) -> None:
        sums = [tensor.contiguous() for tensor in tensors]
        works = [dist.all_reduce(total, async_op=True) for total in sums]
        for tensor, total, work in zip(tensors, sums, works, strict=True):
            work.wait()
            total.div_(self.size)
            if total is not tensor:
                tensor.copy_(total)


ALONE = Ranks()


@contextmanager
def process_group(device: str, limit_seconds: float = 300.0) -> Iterator[Ranks]:
    """Join the processes that torchrun started for this run; without torchrun, do nothing.

    Args:
        device: the run's setting. With CUDA, each process gets its own GPU.
        limit_seconds: a process without a sign of life for this time ends the run.

    Raises:
        RunFailed: another process was killed or failed; the message names it.
        InputError: there are more processes than GPUs, or the setting names one GPU for all.
    """
    size = torchrun.processes()
    if size == 1:
        yield ALONE
        return
    cuda = pick_device(device).type == "cuda"
    if cuda:
        _take_gpu(device)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=_TIMEOUT)
    ranks = Ranks(torchrun.rank(), size)
    store = dist.distributed_c10d._get_default_store()
    peers = Peers(store, ranks.rank, size, limit_seconds)
    problem: BaseException | None = None
    raise_termination()
    try:
        yield ranks
    except BaseException as error:
        problem = _explained(error, peers)
        raise problem from error
    finally:
        if ranks.first:
            with suppress(RuntimeError):  # the others may have failed as well and be gone
                ranks.broadcast(None)  # sends nothing if training has begun
        peers.close(problem)
        with suppress(RuntimeError):
            dist.destroy_process_group()
        restore_termination()


def _explained(error: BaseException, peers: Peers) -> BaseException:
    """Return a message about a lost process in place of the error that its loss caused here."""
    is_consequence = isinstance(error, (RuntimeError, KeyboardInterrupt))
    if isinstance(error, RunFailed) or not is_consequence:
        return error
    ignore_termination()
    loss = peers.loss()
    if loss is None:
        return error
    return loss if peers.speaks else SystemExit(FAILED)


def _take_gpu(device: str) -> None:
    index, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if ":" in device:
        raise InputError(
            f"device={device}: torchrun's processes need a GPU each. Leave the option out; "
            "CUDA_VISIBLE_DEVICES says which GPUs there are."
        )
    if index >= count:
        raise InputError(
            f"torchrun has started more processes than the {count} GPUs here: lower "
            "--nproc-per-node, or use device=cpu."
        )
    torch.cuda.set_device(index)
