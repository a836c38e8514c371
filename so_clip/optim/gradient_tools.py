"""What happens to gradients between the backward pass and the step, sampled ones included.

torch's own tools read `param.grad` alone, and where a layer computed a sampled gradient there is
none. These also read `param.sampled_grad`; on dense gradients they do what torch's do.
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
from so_clip.optim.gradients import (
    add_sampled_gradient,
    clear_sampled_gradient,
    has_gradient,
    read_gradient,
    sampled_gradient,
)

_FLAG = "_step_supports_amp_scaling"  # how torch's scaler asks an optimizer


class GradScaler(torch.amp.GradScaler):
    """torch.amp.GradScaler that also unscales sampled gradients and looks for infinities in them.

    Only entries that the step would read can make it skip a step.
    """

    def step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> float | None:
        """Unscale, unless that was done, and step, unless a gradient is not finite.

        Either way it uses up sampled gradients.
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
    """Makes torch's own GradScaler fail on an optimizer, rather than step by scaled gradients.

    To an optimizer with the flag, torch's scaler says that it is there.
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
                "torch's GradScaler does not see sampled gradients. Use the one of "
                "so_clip.optim.sampled in its place, which is otherwise the same."
            )


@torch.no_grad()
def clip_grad_norm_(optimizer: Optimizer, max_norm: float) -> Tensor:
    """Scale all gradients of an optimizer so that their joint 2-norm is at most `max_norm`.

    The norm is that of what the coming step reads: of a sampled weight, the entries on its support,
    whether or not the rest of its gradient was computed. So it does not depend on how gradients
    are computed; but it is smaller than torch's, which takes all of a dense gradient into account.

    Args:
        optimizer: any, with unscaled gradients.
        max_norm: above 0.

    Returns:
        The norm before, on the first gradient's device.

    Raises:
        InputError: `max_norm` is not above 0.
    """
    if not max_norm > 0:
        raise InputError(f"max_norm={max_norm}: must be a number above 0.")
    params = [param for param in _params(optimizer) if has_gradient(param)]
    if not params:
        return torch.zeros(())
    supports = [_support(optimizer, param) for param in params]
    norms = [
        torch.linalg.vector_norm(read_gradient(*each))
        for each in zip(params, supports, strict=True)
    ]
    norm = torch.linalg.vector_norm(torch.stack([each.to(norms[0]) for each in norms]))
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
    """Average the gradients of sampled weights over all ranks, in one message a device and type.

    Args:
        pairs: weights and their supports, the same on every rank. A weight without a gradient
            counts as zero, and has one thereafter.
        group: the ranks; all by default.
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
            weight.grad = None  # what was in it of the support is now in the values
            clear_sampled_gradient(weight)
            add_sampled_gradient(weight, support_M, values_M)


def _params(optimizer: Optimizer) -> Iterator[Tensor]:
    return chain.from_iterable(group["params"] for group in optimizer.param_groups)


def _support(optimizer: Any, param: Tensor) -> Tensor | None:
    support: Tensor | None = optimizer.support(param) if hasattr(optimizer, "support") else None
    return support
