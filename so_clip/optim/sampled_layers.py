"""Layers that compute only the entries of a weight's gradient that the optimizer reads.

`so_clip.optim.sampled.sampled_gradients` turns nn.Linear into SampledLinear and nn.Conv2d into
SampledConv2d. Both have the output of the class they replace, bit for bit.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from so_clip.optim.rates import moment_dtype
from so_clip.optim.rounded import bias_to_add, weight_to_multiply
from so_clip.optim.sampled_convolution import Geometry, sampled_convolution
from so_clip.optim.sampled_product import (
    KEEPS_COLUMNS,
    MULTIPLIES_ALL,
    Method,
    entries_of_product,
    sampled_product,
)
from so_clip.optim.sampling import Sampling, is_sampled


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


# The method for an input that another operation saves.
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
