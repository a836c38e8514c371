"""Layers that compute only the entries of a weight's gradient that the optimizer reads.

`so_clip.optim.sampled.sampled_gradients` turns nn.Linear into SampledLinear and nn.Conv2d into
SampledConv2d. Both have the output of the class they replace, bit for bit.

Design: autograd's graph has a leaf of M values in the place of each weight. So autograd itself adds
up several uses, replays checkpoints and compiles. A hook hands the leaf's gradient to the weight.
Nothing reads the leaf's values, so it takes no memory.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from so_clip.optim.gradients import add_sampled_gradient, outdated
from so_clip.optim.rates import moment_dtype
from so_clip.optim.rounded import bias_to_add, weight_to_multiply
from so_clip.optim.sampled_convolution import Geometry, sampled_convolution
from so_clip.optim.sampled_coordinates import Coordinates
from so_clip.optim.sampled_gradient import SampledGradient
from so_clip.optim.sampled_product import (
    KEEPS_COLUMNS,
    MULTIPLIES_ALL,
    READS_COORDINATES,
    Method,
    coordinates,
    entries_of_product,
    fastest,
    sampled_product,
)


class Sampling:
    """One weight and the support of its gradient, which changes when a new one is drawn.

    An older graph keeps the coordinates of the old support, or reads those of the new one if they
    are written in its place. In both cases the graph's own leaf knows the old support and its
    version, so its values are recognised and refused.

    Args:
        weight: of a layer.
        handle: a SampledGradients.
        whole: see `sampled_gradients`.

    Attributes:
        support_M: the support.
        method: how the gradient is computed.
        half_method: the same for inputs in half precision.
        coordinates: of the support, for each method that has read them.
    """

    def __init__(self, weight: Tensor, handle: Any, whole: bool | None) -> None:
        self.weight, self.handle = weight, handle
        self.support_M: Tensor = handle.support(weight)
        self.version = self.support_M._version
        self.method, self.half_method = methods_of(weight, len(self.support_M), whole)
        self.coordinates: dict[Method, Coordinates] = {}
        self._zero: Tensor | None = None  # the storage of all leaves
        self.leaf_M = self._new_leaf()
        self.is_used = False  # by a forward pass

    def leaf(self) -> Tensor:
        """Return the leaf; a new one after `module.to(...)`, as it has the values' dtype."""
        self.is_used = True
        ddp = DistributedDataParallel._active_ddp_module
        if ddp is not None and not torch.compiler.is_compiling():
            self.handle.check_ddp(ddp)
        if self.support_M.device != self.weight.device:
            self.handle.refresh()
        if self.weight.dtype != self._dtype:
            self.leaf_M = self._new_leaf()
        return self.leaf_M

    def coordinates_for(self, method: Method) -> tuple[Tensor | None, Tensor | None]:
        """Return the coordinates that a method reads; its first use computes them."""
        if method not in READS_COORDINATES:
            return None, None
        if torch.compiler.is_compiling():
            return coordinates(self.support_M, self.weight.shape[1], method)
        if method not in self.coordinates:
            found = coordinates(self.support_M, self.weight.shape[1], method)
            self.coordinates[method] = found
        return self.coordinates[method]

    def renew(self, support_M: Tensor) -> bool | None:
        """Take over the present support.

        Returns:
            None if nothing has changed, True if there are new values in the tensor that was there,
            False if it is another tensor.
        """
        in_place = support_M is self.support_M
        if in_place and support_M._version == self.version:
            return None
        self.support_M, self.version = support_M, support_M._version
        self.leaf_M = self._new_leaf()
        return in_place

    def _new_leaf(self) -> Tensor:
        self._dtype = self.weight.dtype
        dtype, device = moment_dtype(self.weight), self.weight.device
        if self._zero is None or (self._zero.dtype, self._zero.device) != (dtype, device):
            self._zero = torch.zeros((), dtype=dtype, device=device)
        leaf_M = self._zero.expand(len(self.support_M)).requires_grad_()
        # The hook holds no reference to the leaf, so both are freed with the support.
        deliver = partial(_deliver, self.weight, self.support_M, self.version)
        leaf_M.register_post_accumulate_grad_hook(deliver)
        return leaf_M

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        # A copied model has new weights, and no optimizer samples them yet: copy as None.
        return type(None), ()


def methods_of(weight: Tensor, entries: int, whole: bool | None) -> tuple[Method, Method]:
    """Return how to compute a gradient: for inputs of any precision, and of half precision.

    Args:
        weight: of a layer.
        entries: M.
        whole: whole products; None: on a GPU, for half precision. See `sampled_gradients`.
    """
    shape, device = tuple(weight.shape), weight.device
    half = device.type == "cuda" if whole is None else whole
    method, _ = fastest(entries, shape, device, whole=whole is True)
    half_method, _ = fastest(entries, shape, device, whole=half)
    return method, half_method


def _deliver(weight: Tensor, support_M: Tensor, version: int, leaf_M: Tensor) -> None:
    """Add the leaf's gradient to the weight's, and call the weight's hooks as autograd does."""
    values_M, leaf_M.grad = leaf_M.grad, None
    assert values_M is not None
    if support_M._version != version:
        raise outdated(weight)
    for hook in list((weight._backward_hooks or {}).values()):
        changed = hook(SampledGradient(weight, support_M, values_M))
        if changed is not None:
            values_M = cast(SampledGradient, changed).values_M
    add_sampled_gradient(weight, support_M, values_M)
    for hook in list((weight._post_accumulate_grad_hooks or {}).values()):
        hook(weight)


def is_sampled(sampling: Sampling | None, weight: Tensor) -> bool:
    """Return whether a forward pass needs a sampled gradient of this weight."""
    return (
        sampling is not None
        and sampling.weight is weight  # otherwise the layer has another weight now
        and weight.requires_grad
        and torch.is_grad_enabled()
    )


def _matmul_dtype(input: Tensor, weight: Tensor) -> torch.dtype | None:
    """Return the dtype that a layer computes in; None if torch has to raise its error."""
    kind = input.device.type
    if torch.is_autocast_enabled(kind) and input.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return input.dtype if input.dtype == weight.dtype else None


class SampledLinear(nn.Linear):
    """A linear layer that computes its weight's gradient at `sampling.support_M` alone."""

    sampling: Sampling | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Return nn.Linear's output, for any shape [..., I] and under autocast.

        An input with the attribute `saved_anyway` set to True is saved for the backward pass by
        another operation, or recomputed there. Saving the input itself is then free, so no copy of
        its columns is made. so_clip.clip.engine.recompute sets the attribute; any module may.
        """
        sampling = self.sampling
        if sampling is None or not is_sampled(sampling, self.weight):
            return super().forward(input)
        if input.ndim == 0 or input.shape[-1] != self.in_features:
            return super().forward(input)  # raises torch's error
        saved_anyway = getattr(input, "saved_anyway", False)
        dtype = _matmul_dtype(input, self.weight)
        if dtype is None:
            return super().forward(input)
        leaf_M = sampling.leaf()
        method = sampling.half_method if dtype.itemsize == 2 else sampling.method
        if saved_anyway:
            method = _KEEPS_INPUT.get(method, method)
        # Flat, because torch forbids in-place changes to views that a custom function returns.
        y_NO: Tensor = _Linear.apply(
            input.to(dtype).reshape(-1, self.in_features),
            weight_to_multiply(self.weight, dtype),
            self.bias,
            bias_to_add(self.bias, dtype),
            leaf_M,
            sampling.support_M,
            *sampling.coordinates_for(method),
            method,
        )
        return y_NO.view(*input.shape[:-1], self.out_features)


# The method for an input that is saved anyway.
_KEEPS_INPUT: dict[Method, Method] = {"columns": "gather", "whole_columns": "whole"}


class _Linear(torch.autograd.Function):
    """F.linear. Both passes round the weight to the input's dtype; no rounded copy is kept.

    Support and coordinates are not saved for the backward pass, but kept: a new support may be
    written in their place, and `Sampling` then refuses the gradient with its own message.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_NI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        added_O: Tensor | None,
        leaf_M: Tensor,
        support_M: Tensor,
        row_M: Tensor | None,
        column_M: Tensor | None,
        method: Method,
    ) -> Tensor:
        kept = x_NI
        if method in KEEPS_COLUMNS:
            assert column_M is not None
            kept, column_M = x_NI.index_select(1, column_M), None
        ctx.save_for_backward(kept, weight_OI)
        ctx.support_M, ctx.row_M, ctx.column_M, ctx.method = support_M, row_M, column_M, method
        ctx.bias_dtype = None if bias_O is None else bias_O.dtype
        return F.linear(x_NI, weight_OI.to(x_NI.dtype), added_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight_OI = ctx.saved_tensors
        needs_x, _, needs_bias, *_ = ctx.needs_input_grad
        grad_O = grad_NO.sum(0).to(ctx.bias_dtype) if needs_bias else None
        # One or two operations need no operator around them: it takes time at each call.
        multiply = entries_of_product if ctx.method in MULTIPLIES_ALL else sampled_product
        grad_M = multiply(
            grad_NO,
            kept,
            ctx.support_M,
            weight_OI.shape[1],
            ctx.method,
            row_M=ctx.row_M,
            column_M=ctx.column_M,
        )
        del kept  # may be as large as the next tensor, and nothing else may need it
        grad_x_NI = grad_NO @ weight_OI.to(grad_NO.dtype) if needs_x else None
        return grad_x_NI, None, grad_O, None, grad_M, None, None, None, None


class SampledConv2d(nn.Conv2d):
    """A convolution that computes its weight's gradient at `sampling.support_M` alone."""

    sampling: Sampling | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Return nn.Conv2d's output, also under autocast. One image [I, H, W] is not sampled."""
        sampling = self.sampling
        if sampling is None or input.ndim != 4 or not is_sampled(sampling, self.weight):
            return super().forward(input)
        dtype = _matmul_dtype(input, self.weight)
        if dtype is None:
            return super().forward(input)
        input = input.to(dtype)
        left, right, top, bottom = self._reversed_padding_repeated_twice
        if self.padding_mode != "zeros" or (left, top) != (right, bottom):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input, left, top = F.pad(input, (left, right, top, bottom), mode), 0, 0
        stride, dilation = cast(list[int], [*self.stride]), cast(list[int], [*self.dilation])
        geometry = Geometry(stride, [top, left], dilation, self.groups)
        y_NOHW: Tensor = _Conv2d.apply(
            input,
            weight_to_multiply(self.weight, dtype),
            self.bias,
            bias_to_add(self.bias, dtype),
            sampling.leaf(),
            sampling.support_M,
            sampling.half_method if dtype.itemsize == 2 else sampling.method,
            geometry,
        )
        return y_NOHW


class _Conv2d(torch.autograd.Function):
    """F.conv2d; see `_Linear`."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NIHW: Tensor,
        weight_OIHW: Tensor,
        bias_O: Tensor | None,
        added_O: Tensor | None,
        leaf_M: Tensor,
        support_M: Tensor,
        method: Method,
        geometry: Geometry,
    ) -> Tensor:
        ctx.save_for_backward(x_NIHW, weight_OIHW)
        ctx.support_M, ctx.is_whole, ctx.geometry = support_M, method == "whole", geometry
        ctx.bias_dtype = None if bias_O is None else bias_O.dtype
        return F.conv2d(x_NIHW, weight_OIHW.to(x_NIHW.dtype), added_O, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NOHW: Tensor) -> tuple[Tensor | None, ...]:
        x_NIHW, weight_OIHW = ctx.saved_tensors
        needs_x, _, needs_bias, *_ = ctx.needs_input_grad
        stride, padding, dilation, groups = ctx.geometry
        grad_O = grad_NOHW.sum((0, 2, 3)).to(ctx.bias_dtype) if needs_bias else None
        grad_M = grad_x_NIHW = None
        if not ctx.is_whole:
            grad_M = sampled_convolution(
                grad_NOHW,
                x_NIHW,
                ctx.support_M,
                weight_OIHW.shape,
                stride,
                padding,
                dilation,
                groups,
            )
        if needs_x or ctx.is_whole:
            grad_x_NIHW, grad_OIHW, _ = torch.ops.aten.convolution_backward(
                grad_NOHW,
                x_NIHW,
                weight_OIHW.to(grad_NOHW.dtype),
                None,
                stride,
                padding,
                dilation,
                False,
                [0, 0],
                groups,
                [needs_x, ctx.is_whole, False],
            )
            if ctx.is_whole:  # rounded to half precision once, as in a dense gradient
                grad_M = grad_OIHW.take(ctx.support_M).to(moment_dtype(grad_OIHW))
        return grad_x_NIHW, None, grad_O, None, grad_M, None, None, None
