"""CUDA graphs emulated on the CPU: a recording with every number and every address frozen.

A CUDA graph repeats kernels with the arguments of the capture. Here a recording keeps each
operation with its arguments, and keeps all tensors alive. A replay calls the operations again with
the same tensors, and copies new results to the addresses of the recorded ones. Recording computes
nothing, as on CUDA: tensors that it changed get their old values back. Torch does not see what a
replay changes: no version of a tensor grows.

What a capture forbids raises HostRead while recording: a value that the host reads, a shape that
depends on values, a copy of a new tensor from the host, and a copy of a random state.
"""

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from so_clip.methods.random_draws import use_globally

# Results that are views, or read on the host, beside those that torch marks itself.
_HOST = {
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "_linalg_check_errors",
    "_linalg_svd",
    "_linalg_eigh",
    "linalg_eig",
    "bincount",
    "unique_dim",
    "_unique2",
}
_HOST_METHODS = {Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.item}
_TAGS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


class HostRead(AssertionError):
    """A step does what a CUDA graph cannot hold."""


class EmulatedRecorder:
    """Has the interface of CudaRecorder.

    Attributes:
        recordings: that were made, released ones included.
        live: that are not released.
    """

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator] = ()) -> None:
        assert device.type == "cpu"
        self._generators = [*generators]
        self.recordings, self.live = 0, 0

    @contextmanager
    def training(self) -> Iterator[None]:
        yield

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        tape = _Tape()
        states = [(g, g.get_state()) for g in (torch.default_generator, *self._generators)]
        random_state = patch("torch.get_rng_state", side_effect=_refuse_random_state)
        try:
            with random_state, _HostMethods(), tape:
                function()
        finally:
            tape.undo()
            for generator, state in states:
                generator.set_state(state)
        self.recordings += 1
        self.live += 1

        def replay() -> None:
            with ExitStack() as stack:
                for generator in self._generators:
                    stack.enter_context(use_globally(generator))
                tape.replay()

        return replay

    def release(self) -> None:
        self.live = 0


class HiddenReplays(EmulatedRecorder):
    """Hides its replays from counters of operations, as a graph is one launch."""

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        replay = super().record(function)

        def hidden() -> None:
            with _disable_current_modes():
                replay()

        return hidden


class _HostMethods(TorchFunctionMode):
    """Refuses methods of tensors that wait for the device, also where a CPU tensor has no work."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _HOST_METHODS:
            raise HostRead(f"Tensor.{func.__name__} in {_place()}")
        if func is Tensor.to and "cpu" in (args[1:2] or ("",)):
            raise HostRead(f"Tensor.to('cpu') in {_place()}")
        return func(*args, **(kwargs or {}))


class _Tape(TorchDispatchMode):
    """Operations with their arguments and results, in order."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, Any]] = []
        self._made: set[int] = set()  # storages that the recording made
        self._before: dict[int, tuple[Tensor, Tensor]] = {}  # of changed storages: bytes and copy
        self._changed: list[Tensor] = []  # from before the recording

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        self._check(func, args, kwargs)
        inputs = {_storage(leaf) for leaf in _tensors((args, kwargs))}
        self._save_changed(func, args, kwargs)
        result = func(*args, **kwargs)
        results = _tensors(result)
        self._made |= {_storage(leaf) for leaf in results} - inputs
        fresh = [leaf for leaf in results if _storage(leaf) not in inputs]
        if fresh or func._schema.is_mutable:
            # Lists are copied: their owner may change them later.
            kept = tree_map(lambda leaf: leaf, (args, kwargs))
            self._calls.append((func, *kept, result))
        elif results:
            self._calls.append((None, None, None, result))  # a view, which must stay alive
        return result

    def undo(self) -> None:
        """Give tensors from before the recording their values back."""
        for place, copy in self._before.values():
            place.copy_(copy)
        self._before.clear()

    def replay(self) -> None:
        """Call all operations again."""
        unseen = torch.autograd._unsafe_preserve_version_counter(tuple(self._changed))
        with torch.no_grad(), unseen, torch._C._AutoDispatchBelowAutograd():
            for func, args, kwargs, recorded in self._calls:
                if func is None:
                    continue
                inputs = {_storage(leaf) for leaf in _tensors((args, kwargs))}
                again = _tensors(func(*args, **kwargs))
                for old, new in zip(_tensors(recorded), again, strict=True):
                    if _storage(old) not in inputs:
                        assert old.shape == new.shape
                        old.copy_(new)

    def _check(self, func: Any, args: Any, kwargs: Any) -> None:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            leaf.dtype in (torch.bool, torch.uint8) for leaf in _tensors(args[1])
        )
        shape_is_read = name == "repeat_interleave" and "output_size" not in kwargs
        marked = name != "index" and any(tag in func.tags for tag in _TAGS)
        if name in _HOST or masks or shape_is_read or (marked and name != "repeat_interleave"):
            raise HostRead(f"{func} in {_place()}")
        if name == "lift_fresh" and args[0].numel() > 1:
            raise HostRead(f"a new tensor from the host in {_place()}")

    def _save_changed(self, func: Any, args: Any, kwargs: Any) -> None:
        if not func._schema.is_mutable:
            return
        for leaf in _tensors((args, kwargs)):
            key = _storage(leaf)
            if key not in self._made:
                self._changed.append(leaf)
            if key not in self._made and key not in self._before:
                place = torch.empty(0, dtype=torch.uint8).set_(leaf.untyped_storage())
                self._before[key] = (place, place.clone())


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _refuse_random_state() -> None:
    raise HostRead(f"a random state is copied in {_place()}")


def _place() -> str:
    """Return the innermost line of so_clip, or of another library, on the stack."""
    frames = traceback.extract_stack()
    own = [f for f in frames if "/so_clip/" in f.filename and "/tests/" not in f.filename]
    others = [f for f in frames if "/tests/helpers/" not in f.filename]
    frame = (own or others)[-1]
    return f"{frame.filename.rpartition('so_clip/')[2]}:{frame.lineno} ({frame.line})"
