"""Gradients between the backward pass and the step: whole in `.grad`, sampled in `.sampled_grad`.

A layer that knows its weight's support before the backward pass (see SO.support) computes the
gradient on the support alone. A weight that is used in two places can have both kinds of gradient;
they add up.

torch's own tools read `param.grad` alone. The scaler, the clipping and the averaging here read
`param.sampled_grad` too. On dense gradients they do what torch's do.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from so_clip.errors import InputError
from so_clip.optim.functional import moment_dtype
from so_clip.optim.sparse_entries import largest, read

_FLAG = "_step_supports_amp_scaling"  # torch's scaler reads this attribute of an optimizer


def sampled_gradient(param: Tensor) -> Tensor | None:
    """Return the gradient's values on the support [M] that a layer computed, or None."""
    values: Tensor | None = getattr(param, "sampled_grad", None)
    return values


def has_gradient(param: Tensor) -> bool:
    """Return whether a tensor has a gradient of either kind."""
    return param.grad is not None or sampled_gradient(param) is not None


def clear_sampled_gradient(param: Tensor) -> None:
    """Set `param.sampled_grad` to None if it exists."""
    if sampled_gradient(param) is not None:
        vars(param)["sampled_grad"] = None


def add_sampled_gradient(param: Tensor, support_M: Tensor, values_M: Tensor) -> None:
    """Add to `param.sampled_grad`, as autograd adds to `.grad`, and store the support with it.

    Args:
        param: a tensor of an optimizer.
        support_M: the tensor that the optimizer's `support(param)` returned, not a copy: its
            identity shows whether the support has been drawn again since.
        values_M: the gradient there. From now on it belongs to the parameter.

    Raises:
        RuntimeError: `param.sampled_grad` holds a gradient on another support.
    """
    before_M = sampled_gradient(param)
    if before_M is None:
        values_M.support = support_M  # type: ignore[attr-defined]
        vars(param)["sampled_grad"] = values_M
    else:
        _check_support(param, before_M, support_M)
        before_M += values_M


def read_gradient(param: Tensor, support_M: Tensor | None) -> Tensor:
    """Return the gradient on the support [M]; for None the whole gradient, shaped like the tensor.

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
    index_N = torch.arange(len(score_N), device=score_N.device)
    return largest(score_N[None], index_N[None], count)[0].sort().values


def _check_support(param: Tensor, values_M: Tensor, support_M: Tensor) -> None:
    if getattr(values_M, "support", support_M) is not support_M:
        raise RuntimeError(
            f"the sampled_grad of a tensor of shape {tuple(param.shape)} is on a support that has "
            "been drawn again or loaded since. Call optimizer.zero_grad() after every step, and do "
            "not step between a forward pass and its backward pass."
        )


class GradScaler(torch.amp.GradScaler):
    """torch.amp.GradScaler that also unscales sampled gradients and looks for infinities in them.

    Only entries that the step reads can make it skip a step.
    """

    def step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> float | None:
        """Unscale the gradients if that is not done yet, and step if all of them are finite.

        Sampled gradients are cleared in both cases.
        """
        guard = vars(optimizer).pop(_FLAG, None)
        try:
            return super().step(optimizer, *args, **kwargs)
        finally:
            for param in _params(optimizer):
                clear_sampled_gradient(param)
            if guard is not None:
                setattr(optimizer, _FLAG, guard)

    def _unscale_grads_(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        holders = []
        for param in _params(optimizer):
            values_M = sampled_gradient(param)
            if values_M is not None:
                holders.append(values_M.detach())
                holders[-1].grad = values_M
        groups = [*optimizer.param_groups, {"params": holders}]
        stand_in: Any = SimpleNamespace(param_groups=groups)
        return super()._unscale_grads_(stand_in, *args, **kwargs)


class Guard:
    """Makes an optimizer raise an error under torch's own GradScaler, which skips sampled values.

    The flag makes torch's scaler set attributes on the optimizer before it steps. The hook finds
    these attributes.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        setattr(optimizer, _FLAG, True)
        self._hook: RemovableHandle = optimizer.register_step_pre_hook(self._check)

    def remove(self) -> None:
        self._hook.remove()
        vars(self._optimizer).pop(_FLAG, None)

    @staticmethod
    def _check(optimizer: Optimizer, *_: Any) -> None:
        if hasattr(optimizer, "found_inf"):
            for name in ("found_inf", "grad_scale"):
                vars(optimizer).pop(name, None)
            raise RuntimeError(
                "torch's GradScaler does not see sampled gradients. Use GradScaler of "
                "so_clip.optim.sampled in its place; all else about it is the same."
            )


@torch.no_grad()
def clip_grad_norm_(optimizer: Optimizer, max_norm: float) -> Tensor:
    """Scale all gradients of an optimizer, in place, so that their joint 2-norm is <= `max_norm`.

    With g_i the gradient entries that the coming step reads, each gradient is multiplied by
    min(1, max_norm / (sqrt(Σ g_i²) + 1e-6)). For a sampled weight these are the entries on its
    support, whether or not a layer computed the others. So the norm does not depend on how
    gradients are computed. It is smaller than torch's, which covers the whole dense gradient.

    Args:
        optimizer: any optimizer; its gradients are unscaled.
        max_norm: above 0.

    Returns:
        The norm before scaling, a scalar tensor on the first gradient's device.

    Raises:
        InputError: `max_norm` is not above 0.

    Example:
        >>> loss.backward()
        >>> clip_grad_norm_(optimizer, max_norm=1.0)
        >>> optimizer.step()
    """
    if not max_norm > 0:
        raise InputError(f"max_norm={max_norm}: must be a number above 0.")
    params = [param for param in _params(optimizer) if has_gradient(param)]
    if not params:
        return torch.zeros(())
    norms = [
        torch.linalg.vector_norm(read_gradient(param, _support(optimizer, param)))
        for param in params
    ]
    norm = torch.linalg.vector_norm(torch.stack([part.to(norms[0]) for part in norms]))
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for param in params:
        for grad in (param.grad, sampled_gradient(param)):
            if grad is not None:
                grad.mul_(factor.to(grad.device))
    return norm


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
        if has_gradient(weight):
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
            weight.grad = None  # the values include its entries on the support
            clear_sampled_gradient(weight)
            add_sampled_gradient(weight, support_M, values_M)


def _params(optimizer: Optimizer) -> Iterator[Tensor]:
    return chain.from_iterable(group["params"] for group in optimizer.param_groups)


def _support(optimizer: Any, param: Tensor) -> Tensor | None:
    support: Tensor | None = optimizer.support(param) if hasattr(optimizer, "support") else None
    return support
