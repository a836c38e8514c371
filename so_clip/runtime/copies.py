"""Batches that move to a GPU while it works on the batch before."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

# Batches on a GPU: in use, waiting for it, and being copied.
ON_DEVICE = 3


def moved_ahead(batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Yield each batch on the device. A CUDA device copies the next batch meanwhile.

    At most three batches are on a CUDA device: before a copy, the host waits until the work on the
    batch three places before is done. Page-locked memory is bounded in the same way, because torch
    gives a buffer again when the copy from it is done.

    Args:
        batches: on the CPU; in page-locked memory if the device is CUDA.
        device: of the batches that are yielded.
    """
    if device.type == "cuda":
        return _by_streams(batches, device, torch.cuda)
    return (batch.to(device) for batch in batches)


def _by_streams(batches: Iterable[Tensor], device: torch.device, backend: Any) -> Iterator[Tensor]:
    """Copy in a stream of its own; `backend` is torch.cuda, or a stand-in with its functions."""
    copies, in_use = backend.Stream(device), deque[Any]()
    ahead: tuple[Tensor, Any] | None = None
    for batch in batches:
        if len(in_use) == ON_DEVICE - 1:
            in_use.popleft().synchronize()
        with backend.stream(copies):
            moved = batch.to(device, non_blocking=True)
            copied = backend.Event()
            copied.record(copies)
        before, ahead = ahead, (moved, copied)
        if before is not None:
            yield _ready(*before, backend.current_stream(device))
            used = backend.Event()
            used.record(backend.current_stream(device))
            in_use.append(used)
    if ahead is not None:
        yield _ready(*ahead, backend.current_stream(device))


def _ready(moved: Tensor, copied: Any, stream: Any) -> Tensor:
    copied.wait(stream)
    if moved.device.type == "cuda":
        # Its memory is free again only after the work of this stream.
        moved.record_stream(stream)
    return moved
