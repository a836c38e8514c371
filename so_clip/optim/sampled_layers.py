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

from so_clip.optim.functional import moment_dtype
from so_clip.optim.gradients import add_sampled_gradient
from so_clip.optim.sampled_convolution import Geometry, sampled_convolution
from so_clip.optim.sampled_gradient import SampledGradient
from so_clip.optim.sampled_product import Method, fastest, sampled_product


class Sampling:
    """One weight and the support of its gradient, valid until a new support is drawn.

    An older graph keeps the old support. `add_sampled_gradient` recognises its values by their
    support and refuses them.
    """

    def __init__(self, weight: Tensor, handle: Any) -> None:
        self.weight, self.handle = weight, handle  # a SampledGradients
        self.support_M: Tensor = handle.support(weight)
        self.method, _ = fastest(len(self.support_M), tuple(weight.shape), weight.device)
        self.leaf_M = self._new_leaf()
        self.is_used = False  # by a forward pass

    def leaf(self) -> Tensor:
        """Return the leaf; a new one after `module.to(...)`, as it has the values' dtype."""
        self.is_used = True
        ddp = DistributedDataParallel._active_ddp_module
        if ddp is not None and not torch.compiler.is_compiling():
            self.handle.check_ddp(ddp)
        if self.support_M.device != self.weight.device:
            self.support_M = self.handle.support(self.weight)
            self.leaf_M = self._new_leaf()
        if self.leaf_M.dtype != moment_dtype(self.weight):
            self.leaf_M = self._new_leaf()
        return self.leaf_M

    def _new_leaf(self) -> Tensor:
        zero = torch.zeros((), dtype=moment_dtype(self.weight), device=self.weight.device)
        leaf_M = zero.expand(len(self.support_M)).requires_grad_()
        # The hook holds no reference to the leaf, so both are freed with the support.
        deliver = partial(_deliver, self.weight, self.support_M)
        leaf_M.register_post_accumulate_grad_hook(deliver)
        return leaf_M

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        # A copied model has new weights, and no optimizer samples them yet: copy as None.
        return type(None), ()


def _deliver(weight: Tensor, support_M: Tensor, leaf_M: Tensor) -> None:
    """Add the leaf's gradient to the weight's, and call the weight's hooks as autograd does."""
    values_M, leaf_M.grad = leaf_M.grad, None
    assert values_M is not None
    for hook in list((weight._backward_hooks or {}).values()):
        changed = hook(SampledGradient(weight, support_M, values_M))
        if changed is not None:
            values_M = cast(SampledGradient, changed).values_M
    add_sampled_gradient(weight, support_M, values_M)
    for hook in list((weight._post_accumulate_grad_hooks or {}).values()):
        hook(weight)


def _is_sampled(sampling: Sampling | None, weight: Tensor) -> bool:
    """Return whether a forward pass needs a sampled gradient of this weight."""
    return (
        sampling is not None
        and sampling.weight is weight  # otherwise the layer has another weight now
        and weight.requires_grad
        and torch.is_grad_enabled()
    )


def _cast(
    input: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None] | None:
    """Return the input and the bias in autocast's dtype; None if torch has to raise its error."""
    kind = input.device.type
    if torch.is_autocast_enabled(kind) and input.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        return input.to(dtype), None if bias is None else bias.to(dtype)
    return (input, bias) if input.dtype == weight.dtype else None


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
        if sampling is None or not _is_sampled(sampling, self.weight):
            return super().forward(input)
        if input.ndim == 0 or input.shape[-1] != self.in_features:
            return super().forward(input)  # raises torch's error
        saved_anyway = getattr(input, "saved_anyway", False)
        cast_pair = _cast(input, self.weight, self.bias)
        if cast_pair is None:
            return super().forward(input)
        input, bias = cast_pair
        leaf_M = sampling.leaf()
        method = sampling.method
        if method == "columns" and saved_anyway:
            method = "gather"
        # Flat, because torch forbids in-place changes to views that a custom function returns.
        y_NO: Tensor = _Linear.apply(
            input.reshape(-1, self.in_features),
            self.weight.detach(),
            bias,
            leaf_M,
            sampling.support_M,
            method,
        )
        return y_NO.view(*input.shape[:-1], self.out_features)


class _Linear(torch.autograd.Function):
    """F.linear. Both passes round the weight to the input's dtype; no rounded copy is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        leaf_M: Tensor,
        support_M: Tensor,
        method: Method,
    ) -> Tensor:
        kept = x_NI
        if method == "columns":
            kept = x_NI.index_select(1, support_M % weight_OI.shape[1])
        ctx.save_for_backward(kept, weight_OI, support_M)
        ctx.method = method
        return F.linear(x_NI, weight_OI.to(x_NI.dtype), bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight_OI, support_M = ctx.saved_tensors
        needs_x, _, needs_bias, *_ = ctx.needs_input_grad
        grad_O = grad_NO.sum(0) if needs_bias else None
        grad_M = sampled_product(grad_NO, kept, support_M, weight_OI.shape[1], ctx.method)
        del kept  # may be as large as the next tensor, and nothing else may need it
        grad_x_NI = grad_NO @ weight_OI.to(grad_NO.dtype) if needs_x else None
        return grad_x_NI, None, grad_O, grad_M, None, None


class SampledConv2d(nn.Conv2d):
    """A convolution that computes its weight's gradient at `sampling.support_M` alone."""

    sampling: Sampling | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Return nn.Conv2d's output, also under autocast. One image [I, H, W] is not sampled."""
        sampling = self.sampling
        if sampling is None or input.ndim != 4 or not _is_sampled(sampling, self.weight):
            return super().forward(input)
        cast_pair = _cast(input, self.weight, self.bias)
        if cast_pair is None:
            return super().forward(input)
        input, bias = cast_pair
        left, right, top, bottom = self._reversed_padding_repeated_twice
        if self.padding_mode != "zeros" or (left, top) != (right, bottom):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input, left, top = F.pad(input, (left, right, top, bottom), mode), 0, 0
        stride, dilation = cast(list[int], [*self.stride]), cast(list[int], [*self.dilation])
        geometry = Geometry(stride, [top, left], dilation, self.groups)
        leaf_M = sampling.leaf()
        y_NOHW: Tensor = _Conv2d.apply(
            input, self.weight.detach(), bias, leaf_M, sampling.support_M, geometry
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
        leaf_M: Tensor,
        support_M: Tensor,
        geometry: Geometry,
    ) -> Tensor:
        ctx.save_for_backward(x_NIHW, weight_OIHW, support_M)
        ctx.geometry = geometry
        return F.conv2d(x_NIHW, weight_OIHW.to(x_NIHW.dtype), bias_O, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NOHW: Tensor) -> tuple[Tensor | None, ...]:
        x_NIHW, weight_OIHW, support_M = ctx.saved_tensors
        needs_x, _, needs_bias, *_ = ctx.needs_input_grad
        stride, padding, dilation, groups = ctx.geometry
        grad_O = grad_NOHW.sum((0, 2, 3)) if needs_bias else None
        grad_M = sampled_convolution(
            grad_NOHW, x_NIHW, support_M, weight_OIHW.shape, stride, padding, dilation, groups
        )
        grad_x_NIHW = None
        if needs_x:
            weight_OIHW = weight_OIHW.to(grad_NOHW.dtype)
            grad_x_NIHW, _, _ = torch.ops.aten.convolution_backward(
                grad_NOHW,
                x_NIHW,
                weight_OIHW,
                None,
                stride,
                padding,
                dilation,
                False,
                [0, 0],
                groups,
                [True, False, False],
            )
        return grad_x_NIHW, None, grad_O, grad_M, None, None
