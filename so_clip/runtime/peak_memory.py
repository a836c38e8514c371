"""Peak tensor memory by category, from the tensors themselves.

A process's resident size says little about a method: it counts the interpreter, the libraries and
whatever the allocator holds back. Here every storage that an operation creates is logged with its
size, and again when it is freed; replaying the log gives the peak and what was alive at it. On
CUDA the total comes from the allocator, which also sees workspaces, and the log splits it up.
"""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from so_clip.optim.gradients import sampled_gradient

MIB = 2**20
CATEGORIES = ("weights", "gradients", "optimizer_state", "activations")


class PeakMemory:
    """Context manager around training or evaluation steps; `result()` afterwards.

    Args:
        model: its parameters and buffers are the weights, their `.grad` and sampled gradients
            the gradients.
        optimizer: the tensors in its `state` are the optimizer state; None in evaluation.
        device: where the model lives; a CUDA device also has its allocator asked.

    Tensors that existed before and belong to neither (the few shots in memory, say) are not
    counted on the CPU. All that is neither weight, gradient nor optimizer state counts as
    activation: saved inputs, temporaries and the batch itself.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | None, device: torch.device
    ) -> None:
        self._model, self._optimizer, self._device = model, optimizer, device
        self._log = _StorageLog(device.type)
        self._allocated = 0
        self._measured_before: dict[str, float] | None = None
        self._hooks: list[Any] = []

    def __enter__(self) -> "PeakMemory":
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._log.add([*self._model.parameters(), *self._model.buffers()], "weights")
        for parameter in self._model.parameters():
            if parameter.requires_grad:
                self._hooks.append(
                    parameter.register_post_accumulate_grad_hook(
                        lambda p: self._log.add([p.grad], "gradients")
                    )
                )
        if self._optimizer is not None:
            self._add_optimizer_state(self._optimizer)
            self._hooks.append(
                self._optimizer.register_step_pre_hook(
                    lambda optimizer, args, kwargs: self._add_sampled_gradients(optimizer)
                )
            )
            self._hooks.append(
                self._optimizer.register_step_post_hook(
                    lambda optimizer, args, kwargs: self._add_optimizer_state(optimizer)
                )
            )
        self._log.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._log.__exit__(kind, error, trace)
        if self._device.type == "cuda":
            # Asked now: what comes after, an evaluation say, has a peak of its own.
            self._note_allocated()
        for hook in self._hooks:
            hook.remove()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not look for a while, at an evaluation in the midst of training, say."""
        if self._device.type == "cuda":
            self._note_allocated()
        with _disable_current_modes():
            yield
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def state_dict(self) -> dict[str, Any]:
        """Return the result."""
        return {"result": self.result()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a result for one's own: that of the process that took the first steps."""
        self._measured_before = state_dict["result"]

    def _note_allocated(self) -> None:
        peak = torch.cuda.max_memory_allocated(self._device)
        self._allocated = max(self._allocated, peak)

    def result(self) -> dict[str, float]:
        """Return `peak_memory_mib` and its parts `<category>_mib`, which add up to it."""
        if self._measured_before is not None:
            return self._measured_before
        parts = self._log.peak()
        if self._device.type == "cuda":
            # What only the allocator sees (workspaces, rounding, the few shots) is not weights,
            # gradients or state.
            parts["activations"] += self._allocated - sum(parts.values())
        return {
            "peak_memory_mib": sum(parts.values()) / MIB,
            **{f"{category}_mib": parts[category] / MIB for category in CATEGORIES},
        }

    def _add_optimizer_state(self, optimizer: torch.optim.Optimizer) -> None:
        leaves = tree_leaves(list(optimizer.state.values()))
        self._log.add([leaf for leaf in leaves if isinstance(leaf, Tensor)], "optimizer_state")

    def _add_sampled_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            self._log.add(map(sampled_gradient, group["params"]), "gradients")


class _StorageLog(TorchDispatchMode):
    """Logs the birth, category, growth and death of every storage on one kind of device."""

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self._device_type = device_type
        self._changes: list[tuple[int, int]] = []  # (storage's number, bytes gained or lost)
        self._numbers: dict[int, int] = {}  # address of a live storage -> its number
        self._category: list[str] = []  # by storage number
        self._size: list[int] = []  # in bytes, by storage number

    def add(self, tensors: Iterable[Tensor | None], category: str) -> None:
        """Count these tensors' storages, or recount them if known, under `category`."""
        for tensor in tensors:
            if tensor is not None and tensor.device.type == self._device_type:
                self._category[self._number(tensor.untyped_storage())] = category

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A view of what existed before, the few shots in memory say, is not something new.
        given = {storage._cdata for storage in self._storages((args, kwargs))}
        strangers = given.difference(self._numbers)
        result = func(*args, **(kwargs or {}))
        for storage in self._storages(result):
            if storage._cdata not in strangers:
                self._number(storage)
        return result

    def peak(self) -> dict[str, int]:
        """Replay the log: bytes by category at the moment their sum was largest."""
        alive = dict.fromkeys(CATEGORIES, 0)
        best, best_total, total = dict(alive), 0, 0
        for number, change in self._changes:
            alive[self._category[number]] += change
            total += change
            if total > best_total:
                best, best_total = dict(alive), total
        return best

    def _storages(self, tree: Any) -> Iterator[torch.UntypedStorage]:
        for leaf in tree_leaves(tree):
            if isinstance(leaf, Tensor) and leaf.device.type == self._device_type:
                yield leaf.untyped_storage()

    def _number(self, storage: torch.UntypedStorage) -> int:
        address = storage._cdata
        if address not in self._numbers:
            self._numbers[address] = len(self._category)
            self._category.append("activations")
            self._size.append(0)
            weakref.finalize(storage, self._freed, address, self._numbers[address])
        number = self._numbers[address]
        if change := storage.nbytes() - self._size[number]:
            self._changes.append((number, change))
            self._size[number] += change
        return number

    def _freed(self, address: int, number: int) -> None:
        self._changes.append((number, -self._size[number]))
        if self._numbers.get(address) == number:
            del self._numbers[address]
