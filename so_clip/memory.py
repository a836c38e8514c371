"""Peak tensor memory by category, from the tensors themselves.

A process's resident size says little about a method: it counts the interpreter, the libraries and
whatever the allocator holds back. Here every storage that an operation creates is logged with its
size, and again when it is freed; replaying the log gives the peak and what was alive at it. On
CUDA the total comes from the allocator, which also sees workspaces, and the log splits it up.
"""

import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MIB = 2**20
CATEGORIES = ("weights", "gradients", "optimizer_state", "activations")


class PeakMemory:
    """Context manager around training or evaluation steps; `result()` afterwards.

    Args:
        model: its parameters and buffers are the weights, their `.grad` the gradients.
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
        self._log = _StorageLog()
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
        for hook in self._hooks:
            hook.remove()

    def result(self) -> dict[str, float]:
        """Return `peak_memory_mib` and its parts `<category>_mib`, which add up to it."""
        parts = self._log.peak()
        if self._device.type == "cuda":
            total = torch.cuda.max_memory_allocated(self._device)
            # What only the allocator sees (workspaces, rounding, the few shots) is not weights,
            # gradients or state.
            parts["activations"] += total - sum(parts.values())
        return {
            "peak_memory_mib": sum(parts.values()) / MIB,
            **{f"{category}_mib": parts[category] / MIB for category in CATEGORIES},
        }

    def _add_optimizer_state(self, optimizer: torch.optim.Optimizer) -> None:
        leaves = tree_leaves(list(optimizer.state.values()))
        self._log.add([leaf for leaf in leaves if isinstance(leaf, Tensor)], "optimizer_state")


class _StorageLog(TorchDispatchMode):
    """Logs every storage's birth, category and death while active."""

    def __init__(self) -> None:
        super().__init__()
        self._changes: list[tuple[int, int]] = []  # (storage's number, bytes gained or lost)
        self._numbers: dict[int, int] = {}  # address of a live storage -> its number
        self._category: list[str] = []  # by storage number

    def add(self, tensors: Iterable[Tensor | None], category: str) -> None:
        """Count these tensors' storages, or recount them if known, under `category`."""
        for tensor in tensors:
            if tensor is not None:
                self._category[self._number(tensor)] = category

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._number(leaf)
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

    def _number(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address not in self._numbers:
            number = len(self._category)
            self._numbers[address] = number
            self._category.append("activations")
            self._changes.append((number, storage.nbytes()))
            weakref.finalize(storage, self._freed, address, number, storage.nbytes())
        return self._numbers[address]

    def _freed(self, address: int, number: int, size: int) -> None:
        self._changes.append((number, -size))
        if self._numbers.get(address) == number:
            del self._numbers[address]
