"""Recipes: how the backward pass computes a cheap tensor again, instead of keeping it.

`so_clip.clip.engine.recompute` does this for one function and its one reader. Here it works inside
any code: autograd keeps a recipe in the place of every tensor that was computed by a cheap
function.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from so_clip.clip.engine.recompute import in_matmul_precision, mark_saved_anyway


class _Kept(NamedTuple):
    """A tensor that stays in memory until the backward pass."""

    tensor: Tensor  # detached, because the tensor itself could create a reference cycle
    version: int

    def restore(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError(
                f"a tensor of shape {tuple(self.tensor.shape)}, kept for the backward pass, was "
                "changed in place since: its gradients would be wrong. Do not change it before "
                "backward()."
            )
        return self.tensor


class _Recipe(NamedTuple):
    """A cheap function and its inputs; an input can be a part of another recipe's result."""

    function: Callable[..., Tensor]
    inputs: "tuple[_Kept | _Part, ...]"
    dtype: torch.dtype
    offset: int | torch.SymInt
    version: int
    autocast: tuple[str, torch.dtype, bool]

    def restore(self) -> Tensor:
        inputs = [kept.restore() for kept in self.inputs]
        with torch.no_grad(), torch.autocast(*self.autocast):
            return self.function(*inputs)


class _Part(NamedTuple):
    """A view of a recipe's result."""

    recipe: _Recipe
    size: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt

    def restore(self) -> Tensor:
        again = self.recipe.restore()
        return again.as_strided(self.size, self.stride, self.offset + again.storage_offset())


class _Saved:
    """What autograd holds: a tensor or a part of a recipe's result, decided when it is known."""

    def __init__(self, kept: _Kept | _Part) -> None:
        self.kept = kept


class Recipes:
    """The cheap tensors of one piece of a forward pass.

    Use `compute` for cheap functions inside the context `saving`. The results are those of a plain
    pass, and functions with a custom backward pass run only once.
    """

    def __init__(self) -> None:
        self._recipes: WeakKeyDictionary[torch.UntypedStorage, _Recipe] = WeakKeyDictionary()
        self._kept: WeakKeyDictionary[torch.UntypedStorage, list[_Saved]] = WeakKeyDictionary()

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Let autograd keep recipes in the place of cheap tensors, inside this context."""
        with saved_tensors_hooks(self._pack, lambda saved: saved.kept.restore()):
            yield

    def compute(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Return function(*inputs), and remember how to compute it again.

        Args:
            function: must draw no random numbers and change nothing in place.
            inputs: must not change before the backward pass.
        """
        if not torch.is_grad_enabled():
            return function(*inputs)
        packed = tuple(self._recipe_or_tensor(x) for x in inputs)
        result = function(*inputs)
        storage, kind = result.untyped_storage(), result.device.type
        if any(x.untyped_storage() is storage for x in inputs):
            return result
        self._recipes[storage] = _Recipe(
            function,
            packed,
            result.dtype,
            result.storage_offset(),
            result._version,
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)),
        )
        for saved in self._kept.pop(storage, ()):  # saved by the function itself, as by ReLU
            assert isinstance(saved.kept, _Kept)
            saved.kept = self._recipe_or_tensor(saved.kept.tensor)
        return mark_saved_anyway(result)

    def read(self, x: Tensor) -> Tensor:
        """Return the input of a matrix product or convolution, marked if saving it is free.

        Under autocast it is rounded here, so the rounded copy is not kept either.
        """
        storage = x.untyped_storage()
        if not torch.is_grad_enabled() or not (storage in self._recipes or storage in self._kept):
            return x
        if in_matmul_precision(x) is x:
            return mark_saved_anyway(x)
        return self.compute(in_matmul_precision, x)

    def _pack(self, tensor: Tensor) -> _Saved:
        saved = _Saved(self._recipe_or_tensor(tensor))
        if isinstance(saved.kept, _Kept):
            self._kept.setdefault(tensor.untyped_storage(), []).append(saved)
        return saved

    def _recipe_or_tensor(self, x: Tensor) -> _Kept | _Part:
        recipe = self._recipes.get(x.untyped_storage())
        if recipe is None or x.dtype != recipe.dtype or x._version != recipe.version:
            return _Kept(x.detach(), x._version)
        return _Part(recipe, x.size(), x.stride(), x.storage_offset() - recipe.offset)
