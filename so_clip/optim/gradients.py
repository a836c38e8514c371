"""Gradients between the backward pass and the step: whole, or known on the support alone.

A layer that knows its weight's support before the backward pass (see SO.support) computes the
gradient on the support alone. `param.grad` is then a SampledGradient. A weight that is used in two
places can have both kinds of gradient; they add up on the support.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from so_clip.errors import InputError
from so_clip.optim.rates import moment_dtype
from so_clip.optim.sampled_gradient import SampledGradient, values_of
from so_clip.optim.sparse_entries import largest, read


def clear_sampled_gradient(param: Tensor) -> None:
    """Set `param.grad` to None if it is sampled."""
    if isinstance(param.grad, SampledGradient):
        param.grad = None


def add_sampled_gradient(param: Tensor, support_M: Tensor, values_M: Tensor) -> None:
    """Add the values on the support to `param.grad`, as autograd adds a whole gradient.

    A whole gradient that is there already becomes a sampled one: the step reads no other entries.

    Args:
        param: a tensor of an optimizer.
        support_M: the tensor that the optimizer's `support(param)` returned, not a copy: its
            identity shows whether the support has been drawn again since.
        values_M: the gradient there. From now on it belongs to the parameter.

    Raises:
        RuntimeError: `param.grad` holds a gradient on another support, or there are not as many
            values as indices.
    """
    grad = param.grad
    if isinstance(grad, SampledGradient):
        _check_support(param, grad, support_M)
        grad.values_M += values_M
        return
    if grad is not None:
        values_M = values_M + read(grad, support_M)
    param.grad = SampledGradient(param, support_M, values_M)


def put_empty_gradient(optimizer: Any, param: Tensor, example: Tensor) -> None:
    """Give `param` a gradient of the kind that `example` has, whole or sampled, with any values."""
    if isinstance(example.grad, SampledGradient):
        values_M = torch.empty_like(example.grad.values_M)
        add_sampled_gradient(param, optimizer.support(param), values_M)
    elif example.grad is not None:
        param.grad = torch.empty_like(example.grad)


def read_gradient(param: Tensor, support_M: Tensor | None) -> Tensor:
    """Return the gradient on the support [M]; for None the whole gradient, shaped like the tensor.

    Raises:
        RuntimeError: `.grad` is a sparse tensor, or a sampled one that does not fit the support.
    """
    grad = param.grad
    assert grad is not None
    if isinstance(grad, SampledGradient):
        if support_M is None:
            raise RuntimeError(
                f"the gradient of a tensor of shape {tuple(param.shape)} is sampled, but this step "
                "reads the whole gradient: SO.support is None for it."
            )
        _check_support(param, grad, support_M)
        return grad.values_M
    if grad.layout != torch.strided:
        raise RuntimeError(
            f"the gradient of a tensor of shape {tuple(param.shape)} is {grad.layout}: SO samples "
            "dense gradients itself and does not support sparse ones."
        )
    return read(grad, support_M)


def most_important(param: Tensor, count: int) -> Tensor:
    """Return the `count` entries of largest |gradient|, ascending; ties: the lower index."""
    score_N = read_gradient(param, None).abs().reshape(-1)
    score_N = score_N.to(torch.promote_types(score_N.dtype, torch.float32))
    index_N = torch.arange(len(score_N), device=score_N.device)
    return largest(score_N[None], index_N[None], count)[0].sort().values


def _check_support(param: Tensor, grad: SampledGradient, support_M: Tensor) -> None:
    if grad.support_M is not support_M or grad.version != support_M._version:
        raise outdated(param)


def outdated(param: Tensor) -> RuntimeError:
    """Return the error for a sampled gradient that is not on the present support."""
    return RuntimeError(
        f"the sampled gradient of a tensor of shape {tuple(param.shape)} is on a support that "
        "has been drawn again or loaded since, or of another optimizer. Call "
        "optimizer.zero_grad() after every step, do not step between a forward pass and its "
        "backward pass, and call sampled_gradients with the optimizer that steps."
    )


def unwrapped(optimizer: Any) -> Any:
    """Return the optimizer itself for one in a wrapper, such as Accelerate's or Lightning's."""
    while not hasattr(optimizer, "support") and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


@torch.no_grad()
def clip_grad_norm_(
    optimizer: Optimizer, max_norm: float, *, estimate_dense: bool = False
) -> Tensor:
    """Scale all gradients of an optimizer, in place, so that their joint 2-norm is <= `max_norm`.

    With g_i the gradient entries that the coming step reads, each gradient is multiplied by

        min(1, max_norm / (sqrt(Σ g_i²) + 1e-6)).

    For a sampled weight these are the M entries on its support, whether or not a layer computed
    the others. So the norm does not depend on how gradients are computed. It is smaller than the
    norm of the whole gradient, by sqrt(M / numel) on average: at density 5e-4 about 45 times, so a
    `max_norm` that was chosen for dense training almost never clips.

    torch's clip_grad_norm_ takes the same norm if layers computed all sampled gradients. It takes
    the whole gradient of other sampled weights, such as embeddings.

    Args:
        optimizer: any optimizer; its gradients are unscaled.
        max_norm: above 0.
        estimate_dense: clip by an estimate of the norm of the whole gradient in place of the norm
            above. The sum of squares of a sampled gradient is multiplied by numel / M; whole
            gradients count exactly. Over random supports this is an unbiased estimate of the
            squared norm. Its spread is large where few entries make up most of the norm.

    Returns:
        The norm before scaling, a scalar tensor on the first gradient's device.

    Raises:
        InputError: `max_norm` is not above 0, or a norm is to be estimated from a support that was
            chosen by importance.

    Example:
        >>> loss.backward()
        >>> clip_grad_norm_(optimizer, max_norm=1.0, estimate_dense=True)
        >>> optimizer.step()
    """
    if not max_norm > 0:
        raise InputError(f"max_norm={max_norm}: must be a number above 0.")
    inner = unwrapped(optimizer)
    norms, grads = [], []
    for group in inner.param_groups:
        for param in group["params"]:
            grad = values_of(param.grad)
            if grad is not None:
                grads.append(grad)
                norms.append(_norm(inner, group, param, estimate_dense))
    if not norms:
        return torch.zeros(())
    norm = torch.linalg.vector_norm(torch.stack([part.to(norms[0]) for part in norms]))
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(factor.to(grad.device))
    return norm


def _norm(optimizer: Any, group: dict[str, Any], param: Tensor, estimate_dense: bool) -> Tensor:
    """Return the norm of a gradient's entries that the step reads, or an estimate for all."""
    support_M = optimizer.support(param) if hasattr(optimizer, "support") else None
    if not estimate_dense:
        return torch.linalg.vector_norm(read_gradient(param, support_M))
    if not isinstance(param.grad, SampledGradient):
        return torch.linalg.vector_norm(read_gradient(param, None))
    if group.get("gradient_selection", "random") != "random":
        raise InputError(
            f"estimate_dense=True with gradient_selection={group['gradient_selection']}: the norm "
            "of the whole gradient can be estimated from random supports alone. Leave "
            "estimate_dense out, or do not call sampled_gradients."
        )
    values_M = read_gradient(param, support_M)
    return torch.linalg.vector_norm(values_M) * (param.numel() / max(1, len(values_M))) ** 0.5


@torch.no_grad()
def all_reduce_sampled(
    pairs: Sequence[tuple[Tensor, Tensor]], group: "dist.ProcessGroup | None" = None
) -> None:
    """Average the gradients of sampled weights over all ranks, one message per device and dtype.

    Args:
        pairs: weights and their supports, the same on every rank. A weight without a gradient
            counts as zero, and has a gradient afterwards.
        group: the ranks; None: all ranks.
    """
    alike: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, Tensor, Tensor]]]
    alike = defaultdict(list)
    for weight, support_M in pairs:
        if weight.grad is not None:
            values_M = read_gradient(weight, support_M).to(moment_dtype(weight))
        else:
            values_M = weight.new_zeros(len(support_M), dtype=moment_dtype(weight))
        alike[values_M.device, values_M.dtype].append((weight, support_M, values_M))
    for triples in alike.values():
        flat = torch.cat([values_M for *_, values_M in triples])
        dist.all_reduce(flat, group=group)
        flat /= dist.get_world_size(group)
        pieces = flat.split([len(values_M) for *_, values_M in triples])
        for (weight, support_M, _), values_M in zip(triples, pieces, strict=True):
            weight.grad = SampledGradient(weight, support_M, values_M)
