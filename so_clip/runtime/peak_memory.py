"""Peak tensor memory by category, measured on the tensors.

A process's resident size does not show a method's memory: it includes the interpreter, the
libraries and memory that the allocator holds back. Here a log has the birth and the death of every
storage that an operation creates, with its size. A replay of the log gives the peak and the
storages alive at it. On CUDA the total comes from the allocator, because it also sees workspaces,
and the log splits it into categories. There, `peak_reserved_mib` is what the allocator held of the
GPU's memory, with the pool of CUDA graphs.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from so_clip.optim.sampled_gradient import values_of

MIB = 2**20
CATEGORIES = ("weights", "gradients", "optimizer_state", "activations")


class PeakMemory:
    """Context manager around training or evaluation steps; `result()` returns the peak afterwards.

    Every tensor that is neither weight, gradient nor optimizer state counts as activation: saved
    inputs, temporaries and the batch. On the CPU, other tensors from before the context (such as
    the few-shot images in memory) are not counted.

    Args:
        model: its parameters and buffers are the weights; `.grad` of its parameters are the
            gradients, whole or sampled.
        optimizer: the tensors in its `state` are the optimizer state; one, several, or None in
            evaluation.
        device: of the model; on CUDA the allocator gives the total.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None,
        device: torch.device,
    ) -> None:
        self._model, self._device = model, device
        self._optimizers = (
            [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else [*(optimizer or ())]
        )
        self.log = StorageLog(device.type)
        self._allocated = self._reserved = 0  # bytes
        self._restored: dict[str, float] | None = None
        self._hooks: list[Any] = []

    def __enter__(self) -> "PeakMemory":
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # of earlier work, such as an evaluation
            torch.cuda.reset_peak_memory_stats(self._device)
        self.log.add([*self._model.parameters(), *self._model.buffers()], "weights")
        for parameter in self._model.parameters():
            if parameter.requires_grad:
                hook = parameter.register_post_accumulate_grad_hook(
                    lambda parameter: self.log.add([values_of(parameter.grad)], "gradients")
                )
                self._hooks.append(hook)
        for optimizer in self._optimizers:
            self._add_optimizer_state(optimizer)
            self._hooks.append(optimizer.register_step_post_hook(self._add_optimizer_state))
        self.log.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.log.__exit__(*error)
        # Now, because later work, such as an evaluation, has another peak.
        self._note_allocated()
        for hook in self._hooks:
            hook.remove()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop measuring inside the context, such as for an evaluation during training."""
        self._note_allocated()
        with _disable_current_modes():
            yield
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)

    def state_dict(self) -> dict[str, Any]:
        """Return the result."""
        return {"result": self.result()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the result of the process that took the first steps."""
        self._restored = state_dict["result"]

    def _note_allocated(self) -> None:
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device)
            self._allocated = max(self._allocated, peak)
            reserved = torch.cuda.max_memory_reserved(self._device)
            self._reserved = max(self._reserved, reserved)

    def result(self) -> dict[str, float]:
        """Return `peak_memory_mib` and its parts `<category>_mib`, which add up to it.

        On CUDA also `peak_reserved_mib`: what the allocator held, unused parts included.
        """
        if self._restored is not None:
            return self._restored
        parts = self.log.peak()
        if self._device.type == "cuda":
            # Memory that only the allocator sees (workspaces, rounding, few-shot images) counts as
            # activations: it is not weights, gradients or state.
            parts["activations"] += self._allocated - sum(parts.values())
        return {
            "peak_memory_mib": sum(parts.values()) / MIB,
            **{f"{category}_mib": parts[category] / MIB for category in CATEGORIES},
            **({"peak_reserved_mib": self._reserved / MIB} if self._reserved else {}),
        }

    def _add_optimizer_state(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        leaves = tree_leaves(list(optimizer.state.values()))
        self.log.add([leaf for leaf in leaves if isinstance(leaf, Tensor)], "optimizer_state")


def watched_start(model: nn.Module, state: nn.Module, device: torch.device) -> PeakMemory:
    """Return a PeakMemory for the change of a model by a state; both count as weights.

    Args:
        model: on the device.
        state: on any device; it counts if it is on this one.
        device: of the model.
    """
    peak = PeakMemory(model, None, device)
    peak.log.add([*state.parameters(), *state.buffers()], "weights")
    return peak


class StorageLog(TorchDispatchMode):
    """Logs the birth, category, growth and death of every storage on one kind of device.

    Attributes:
        changes: (storage number, change in bytes), in the order of the operations.
        after_operation: called with each operation, its arguments and its result.
    """

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self._device_type = device_type
        self.changes: list[tuple[int, int]] = []
        self.after_operation: Callable[..., None] | None = None
        self._numbers: dict[int, int] = {}  # address of a live storage -> storage number
        self._category: list[str] = []  # by storage number
        self._size: list[int] = []  # in bytes, by storage number

    def add(self, tensors: Iterable[Tensor | None], category: str) -> None:
        """Set the category of these tensors' storages, and log storages that are new."""
        for tensor in tensors:
            if tensor is not None and tensor.device.type == self._device_type:
                self._category[self._number(tensor.untyped_storage())] = category

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # torch asks for a device; nothing is computed
            return func(*args, **(kwargs or {}))
        # A view of an older tensor, such as the few-shot images in memory, is not a new storage.
        inputs = {storage._cdata for storage in self._storages((args, kwargs))}
        unlogged = inputs.difference(self._numbers)
        result = func(*args, **(kwargs or {}))
        for storage in self._storages(result):
            if storage._cdata not in unlogged:
                self._number(storage)
        if self.after_operation is not None:
            self.after_operation(func, args, kwargs or {}, result)
        return result

    def peak(self) -> dict[str, int]:
        """Replay the log; return the bytes by category at the moment of the largest sum."""
        alive = dict.fromkeys(CATEGORIES, 0)
        best, best_total, total = dict(alive), 0, 0
        for number, change in self.changes:
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
            self.changes.append((number, change))
            self._size[number] += change
        return number

    def _freed(self, address: int, number: int) -> None:
        self.changes.append((number, -self._size[number]))
        if self._numbers.get(address) == number:
            del self._numbers[address]


def peak_over(phase: str, device: torch.device) -> str:
    """Return what the peak of a phase is, for people."""
    if device.type == "cuda":
        return f"peak of the CUDA allocator over {phase}"
    return f"peak of live tensor memory (weights and all tensors made) over {phase}"
