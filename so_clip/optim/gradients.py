"""Where an optimizer finds a tensor's gradient: whole in `.grad`, sampled in `.sampled_grad`.

A layer that knows its weight's support before the backward pass (see SO.support) need not compute
the rest of the gradient. Both may be there, when a weight is used in two places; they add up.
"""

import torch
from torch import Tensor

from so_clip.optim.sparse_entries import largest, read


def sampled_gradient(param: Tensor) -> Tensor | None:
    """Return the gradient's values on the support [M], as a layer left them, if one did."""
    values: Tensor | None = getattr(param, "sampled_grad", None)
    return values


def add_sampled_gradient(param: Tensor, support_M: Tensor, values_M: Tensor) -> None:
    """Add to `param.sampled_grad`, as autograd adds to `.grad`, and note which support it is on.

    Args:
        param: a tensor of an optimizer.
        support_M: what its `support(param)` returned; the very tensor, which is how a support that
            has since been drawn anew is told apart.
        values_M: the gradient there, which from now on belongs to the parameter.

    Raises:
        RuntimeError: what is there is a gradient on another support.
    """
    before_M = sampled_gradient(param)
    if before_M is None:
        values_M.support = support_M  # type: ignore[attr-defined]
        vars(param)["sampled_grad"] = values_M
    else:
        _check_support(param, before_M, support_M)
        before_M += values_M


def _check_support(param: Tensor, values_M: Tensor, support_M: Tensor) -> None:
    if getattr(values_M, "support", support_M) is not support_M:
        raise RuntimeError(
            f"the sampled_grad of a tensor of shape {tuple(param.shape)} is on a support that has "
            "been drawn anew or loaded since. Call optimizer.zero_grad() after every step, and do "
            "not step between a forward pass and its backward pass."
        )


def has_gradient(param: Tensor) -> bool:
    """Return whether there is anything to step by."""
    return param.grad is not None or sampled_gradient(param) is not None


def clear_sampled_gradient(param: Tensor) -> None:
    """Set `param.sampled_grad` to None, if there is one."""
    if sampled_gradient(param) is not None:
        vars(param)["sampled_grad"] = None


def read_gradient(param: Tensor, support_M: Tensor | None) -> Tensor:
    """Return the gradient on the support [M], or all of it for None, shaped like the tensor.

    Raises:
        RuntimeError: `.grad` is a sparse tensor, or `.sampled_grad` does not fit the support.
    """
    grad, sampled_M = param.grad, sampled_gradient(param)
    if grad is not None and grad.layout != torch.strided:
        raise RuntimeError(
            f"the gradient of a tensor of shape {tuple(param.shape)} is {grad.layout}: SO samples "
            "dense gradients itself and does not support sparse ones."
        )
    if sampled_M is None:
        assert grad is not None
        return read(grad, support_M)
    if support_M is None:
        raise RuntimeError(
            f"a tensor of shape {tuple(param.shape)} has a sampled_grad, but this step reads the "
            "whole gradient: SO.support is None for it."
        )
    if sampled_M.shape != support_M.shape:
        raise RuntimeError(
            f"sampled_grad has shape {tuple(sampled_M.shape)}, but SO.support of its tensor of "
            f"shape {tuple(param.shape)} has shape {tuple(support_M.shape)}."
        )
    _check_support(param, sampled_M, support_M)
    return sampled_M if grad is None else sampled_M + read(grad, support_M)


def most_important(param: Tensor, count: int) -> Tensor:
    """Return the `count` entries of largest |gradient|, ascending; ties: the lower index."""
    score_N = read_gradient(param, None).abs().reshape(-1)
    score_N = score_N.to(torch.promote_types(score_N.dtype, torch.float32))
    everything_N = torch.arange(len(score_N), device=score_N.device)
    return largest(score_N[None], everything_N[None], count)[0].sort().values
