"""A gradient that holds the entries on a support alone, with the shape of its weight.

It is the `.grad` of a weight, so tools that read or scale gradients work without change: clipping
by norm or value, torch's GradScaler, norms in a log, `zero_grad`, Lightning and Accelerate.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

_SCALER = "_amp_foreach_non_finite_check_and_unscale_"
# Functions that are not pointwise by torch's own tag: copies, and reductions to one number.
_COPIES = ("detach", "alias", "_to_copy", "zero_", "zeros_like", "ones_like", "empty_like")
_REDUCTIONS = (
    "linalg_vector_norm",
    "norm",
    "sum",
    "mean",
    "max",
    "min",
    "amax",
    "amin",
    "all",
    "any",
)


class SampledGradient(Tensor):
    """The gradient of one weight, known on a support alone.

    Pointwise functions act on the known entries, in place or not. A whole tensor of the weight's
    shape takes part with its entries on the support. Norms, sums, means and extremes cover the
    known entries alone. Other functions raise an error. It takes the memory of its values.

    Args:
        weight: the weight that the gradient belongs to.
        support_M: flat indices of the known entries, int64, ascending.
        values_M: the gradient there, of any float dtype. They belong to this object from now on.

    Raises:
        RuntimeError: there are not as many values as indices.
    """

    support_M: Tensor
    values_M: Tensor
    version: int  # of the support: it grows if another one is written in its place

    @staticmethod
    def __new__(cls, weight: Tensor, support_M: Tensor, values_M: Tensor) -> "SampledGradient":
        """Make a gradient; see the class."""
        if values_M.shape != support_M.shape:
            raise RuntimeError(
                f"values of shape {tuple(values_M.shape)} for a support of shape "
                f"{tuple(support_M.shape)}, of a tensor of shape {tuple(weight.shape)}."
            )
        return cls._made(weight, weight.dtype, support_M, values_M)

    @classmethod
    def _made(
        cls, like: Tensor, dtype: torch.dtype, support_M: Tensor, values_M: Tensor
    ) -> "SampledGradient":
        made: SampledGradient = Tensor._make_wrapper_subclass(
            cls,
            like.shape,
            strides=like.stride(),
            dtype=dtype,
            device=values_M.device,
            storage_size=0,
        )
        made.support_M, made.values_M, made.version = support_M, values_M, support_M._version
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        """Return shape and values; torch's own would read entries that are not known."""
        return f"SampledGradient(shape={tuple(self.shape)}, values_M={self.values_M})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a torch function on the known entries."""
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name == _SCALER or name.startswith("_foreach_"):
            return _of_lists(func, name, args, kwargs)
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        first = next(leaf for leaf in leaves if isinstance(leaf, SampledGradient))
        in_place = name.endswith("_")
        reduces = name in _REDUCTIONS and _reduces_all(func, args, kwargs)
        if not (torch.Tag.pointwise in func.tags or name in _COPIES or reduces):
            raise _refusal(first, name)
        if in_place and args[0] is not first:
            raise _refusal(first, f"{name} of a whole tensor")

        values_args, values_kwargs = tree_map(
            lambda leaf: _entries(leaf, first, name), (args, kwargs)
        )
        result = func(*values_args, **values_kwargs)
        if in_place:
            return first
        if reduces:
            return result
        dtype = first.dtype if result.dtype == first.values_M.dtype else result.dtype
        return cls._made(first, dtype, first.support_M.to(result.device), result)


def values_of(grad: Tensor | None) -> Tensor | None:
    """Return the tensor that holds a gradient's values: [M] if sampled, otherwise itself."""
    return grad.values_M if isinstance(grad, SampledGradient) else grad


def _entries(leaf: Any, first: SampledGradient, name: str) -> Any:
    """Return the entries of an argument that a pointwise function needs."""
    if isinstance(leaf, SampledGradient):
        if leaf.support_M is first.support_M and leaf.shape == first.shape:
            return leaf.values_M
        raise _refusal(first, f"{name} with a gradient on another support")
    if not isinstance(leaf, Tensor) or leaf.ndim == 0:
        return leaf
    if leaf.shape == first.shape:
        return leaf.take(first.support_M)
    raise _refusal(first, f"{name} with a tensor of shape {tuple(leaf.shape)}")


def _of_lists(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function of one list of gradients, sampled ones and whole ones mixed."""
    grads, *others = args
    for leaf in tree_leaves((others, kwargs)):
        if isinstance(leaf, SampledGradient):
            raise _refusal(leaf, f"{name} with two lists of gradients")
    if name == _SCALER:  # values can be float32 although the weight is not; one dtype a call
        for dtype in {values_of(grad).dtype for grad in grads}:  # type: ignore[union-attr]
            values = [v for v in map(values_of, grads) if v is not None and v.dtype == dtype]
            func(values, *others, **kwargs)
        return None
    results = func([values_of(grad) for grad in grads], *others, **kwargs)
    if results is None:
        return None
    return [
        SampledGradient._made(grad, grad.dtype, grad.support_M, result)
        if isinstance(grad, SampledGradient) and result.shape == grad.support_M.shape
        else result
        for grad, result in zip(grads, results, strict=True)
    ]


def _reduces_all(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a reduction covers all dimensions."""
    places = {arg.name: i for i, arg in enumerate(func._schema.arguments)}
    if "other" in places:
        return False
    place = places.get("dim")
    if place is None:
        return True
    dim = args[place] if place < len(args) else kwargs.get("dim")
    return dim is None or dim == []


def _refusal(grad: SampledGradient, what: str) -> RuntimeError:
    return RuntimeError(
        f"the gradient of a tensor of shape {tuple(grad.shape)} is sampled, and {what} needs "
        "entries that were not computed. Its values are grad.values_M, at the flat indices "
        "grad.support_M; for whole gradients, do not call sampled_gradients."
    )
