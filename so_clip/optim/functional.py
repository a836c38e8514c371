"""One step of SO on a list of tensors: the maths, without the optimizer's bookkeeping.

SO reads the gradient of M entries of a tensor (its support) and keeps the moments of M entries. In
a step the moments cover the union of both sets, at most 2M entries. Then SO prunes them to M:

    g~ = the gradient on the support, 0 elsewhere
    μ  = β1 μ + (1 - β1) g~,   ν = β2 ν + (1 - β2) g~²       on the union
    kept: the M entries of the union with the largest |μ|
    w -= lr · μ / (1 - β1^t) / (sqrt(ν / (1 - β2^t)) + eps)

The last line moves the kept entries (order "prune_first", the paper) or the whole union
("update_first", the released code). Among entries of equal |μ|, the lower index is kept.

`_single_tensor_so` reads like these lines. `_multi_tensor_so` is the fast path. They agree bit for
bit, because both round products and sums one by one: whether a fused multiply-add is used depends
on the memory address of an entry.

Names end in their shape: R tensors, M entries sampled of each, U entries of a union; E is M or U.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from so_clip.optim.sparse_entries import largest, locate, read, spread, subtract
from so_clip.optim.support import to_device


@dataclass(frozen=True)
class Rule:
    """The settings of one step; see SO for their meaning."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    order: str
    moment_selection: str
    maximize: bool


@dataclass(frozen=True)
class Moments:
    """The moments of R tensors, M entries each, one row a tensor. A step changes them in place."""

    index_RM: Tensor  # flat indices of the entries, int64, in any order
    place_RM: Tensor | None  # position of each entry in the support, int64; M: not in it
    exp_avg_RM: Tensor  # μ
    exp_avg_sq_RM: Tensor  # ν
    age_RM: Tensor | None  # steps since each entry entered, int32; replaces t if not None

    def tensors(self) -> list[Tensor]:
        """Return the tensors that are not None, in this order."""
        return [tensor for tensor in vars(self).values() if tensor is not None]


def so(
    params: list[Tensor],
    grads: list[Tensor],
    support_RM: Tensor | None,
    moments: Moments,
    *,
    rule: Rule,
    step: int,
    generator: torch.Generator,
    foreach: bool | None = None,
) -> None:
    """Perform one step, in place, on R tensors of one dtype and device, M entries of each.

    Args:
        params: the weights, of any shape and strides.
        grads: the gradients' values on the supports [M]; whole gradients if support_RM is None.
        support_RM: flat indices of the entries read, int64, ascending; None: all entries.
        moments: float32, or float64 for float64 weights; with places unless support_RM is None.
        rule: the settings.
        step: the number of this step, from 1. It is t, unless the moments have ages.
        generator: a CPU generator for random pruning.
        foreach: all tensors together (None, True) or one after the other (False).
    """
    tickets = None
    if rule.moment_selection == "random":
        tickets = _draw_tickets(params, support_RM, moments.index_RM, generator)
    # Without a support, one tensor at a time is fast enough and takes far less memory.
    if foreach is False or support_RM is None:
        _single_tensor_so(params, grads, support_RM, moments, tickets, rule=rule, step=step)
    else:
        _multi_tensor_so(params, grads, support_RM, moments, tickets, rule=rule, step=step)


# Random scores for random pruning: of the entries with moments [R, M] and of the entries read
# [R, M] (without a support: one [numel] a tensor).
Tickets = tuple[Tensor, Sequence[Tensor]]


def _single_tensor_so(
    params: list[Tensor],
    grads: list[Tensor],
    support_RM: Tensor | None,
    moments: Moments,
    tickets: Tickets | None,
    *,
    rule: Rule,
    step: int,
) -> None:
    for i, param in enumerate(params):
        index_M, exp_avg_M, exp_avg_sq_M = (
            rows[i] for rows in (moments.index_RM, moments.exp_avg_RM, moments.exp_avg_sq_RM)
        )
        support_M = None if support_RM is None else support_RM[i]
        grad_M = _effective_gradient(grads[i], param, support_M, rule).reshape(-1)
        union_U, place_M, entered_M = _union(index_M, support_M, param.numel())
        entered = len(union_U) - len(index_M)
        grad_U = spread(grad_M, place_M, len(union_U))

        mu_U = pad(exp_avg_M, (0, entered)) * rule.beta1 + grad_U * (1 - rule.beta1)
        nu_U = pad(exp_avg_sq_M, (0, entered)) * rule.beta2 + grad_U.square() * (1 - rule.beta2)
        t: int | Tensor = step
        if moments.age_RM is not None:
            t = pad(moments.age_RM[i], (0, entered)) + 1
        descent_U = _descent(mu_U, nu_U, t, rule)
        score_U = mu_U.abs()
        if tickets:
            score_U = torch.cat((tickets[0][i], tickets[1][i][entered_M]))
        kept_M = largest(score_U[None], union_U[None], len(index_M))[0]

        moved = kept_M if rule.order == "prune_first" else slice(None)
        subtract([param], union_U[None, moved], descent_U[None, moved])
        index_M.copy_(union_U[kept_M])
        exp_avg_M.copy_(mu_U[kept_M])
        exp_avg_sq_M.copy_(nu_U[kept_M])
        if moments.age_RM is not None and isinstance(t, Tensor):
            moments.age_RM[i].copy_(t[kept_M])
        if moments.place_RM is not None and support_M is not None:
            moments.place_RM[i].copy_(locate(index_M[None], support_M[None])[0])


def _union(index_M: Tensor, support_M: Tensor | None, numel: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the union, the place of each support entry in it, and which support entries are new.

    The union holds the entries with moments first, then the new entries.
    """
    if support_M is None:
        support_M = torch.arange(numel, device=index_M.device)
    entered_M = ~torch.isin(support_M, index_M)
    union_U = torch.cat((index_M, support_M[entered_M]))
    sorted_U, order_U = union_U.sort()
    return union_U, order_U[torch.searchsorted(sorted_U, support_M)], entered_M


def _multi_tensor_so(
    params: list[Tensor],
    grads: list[Tensor],
    support_RM: Tensor,
    moments: Moments,
    tickets: Tickets | None,
    *,
    rule: Rule,
    step: int,
) -> None:
    """Step all tensors together, in rows of 2M places: M entries with moments, then M entries read.

    An entry that has moments and is read too counts once, in the first half; its place in the
    second half is masked. Each tensor has its own storage, so weights are read and written by one
    call a tensor. All other work is one call for all tensors. No line waits for the device.
    """
    m = support_RM.shape[1]
    place_RM = moments.place_RM
    assert place_RM is not None
    grad_RM = _stacked_gradients(params, grads, support_RM, rule)
    # Place M stands for all entries outside the support: their gradient is 0.
    old_grad_RM = pad(grad_RM, (0, 1)).gather(1, place_RM)
    is_old_RM = place_RM.new_zeros((len(params), m + 1), dtype=torch.bool)
    is_old_RM = is_old_RM.scatter_(1, place_RM, True)[:, :m]

    mu_RM = moments.exp_avg_RM.mul_(rule.beta1).add_(old_grad_RM * (1 - rule.beta1))
    nu_RM = moments.exp_avg_sq_RM.mul_(rule.beta2)
    nu_RM += old_grad_RM.square_().mul_(1 - rule.beta2)
    new_mu_RM = grad_RM * (1 - rule.beta1)
    age_RM = moments.age_RM
    new = Moments(
        index_RM=support_RM,
        place_RM=torch.arange(m, device=place_RM.device).expand_as(place_RM),
        exp_avg_RM=new_mu_RM,
        exp_avg_sq_RM=grad_RM.square_().mul_(1 - rule.beta2),
        age_RM=None if age_RM is None else torch.ones_like(age_RM.add_(1)),
    )
    if rule.order == "update_first":
        _descend(params, moments, None, rule, step)
        _descend(params, new, is_old_RM, rule, step)

    score_RM, new_score_RM = mu_RM.abs(), new_mu_RM.abs()
    if tickets:
        score_RM, new_score_RM = tickets[0], torch.stack(list(tickets[1]))
    scores = (score_RM, new_score_RM.masked_fill_(is_old_RM, -1))
    union = [torch.cat(pair, dim=1) for pair in zip(moments.tensors(), new.tensors(), strict=True)]
    kept_RM = largest(torch.cat(scores, dim=1), union[0], m)
    for moment_RM, union_RU in zip(moments.tensors(), union, strict=True):
        torch.gather(union_RU, 1, kept_RM, out=moment_RM)
    if rule.order == "prune_first":
        _descend(params, moments, None, rule, step)


def _stacked_gradients(
    params: list[Tensor], grads: list[Tensor], support_RM: Tensor, rule: Rule
) -> Tensor:
    """Return `_effective_gradient` of all tensors; the caller may write to it."""
    weight_RM = None
    if rule.weight_decay:
        weights = [
            read(param, support_M)
            for param, support_M in zip(params, support_RM.unbind(), strict=True)
        ]
        weight_RM = torch.stack(weights)
    grad_RM = torch.stack(grads).to(moment_dtype(params[0]))
    return _regularised(grad_RM, weight_RM, rule)


def _descend(
    params: list[Tensor], moments: Moments, still_RM: Tensor | None, rule: Rule, step: int
) -> None:
    """Move all weights at `moments.index_RM`, except those marked in `still_RM`."""
    t = step if moments.age_RM is None else moments.age_RM
    descent_RM = _descent(moments.exp_avg_RM, moments.exp_avg_sq_RM, t, rule)
    if still_RM is not None:
        descent_RM = descent_RM.masked_fill_(still_RM, 0)
    subtract(params, moments.index_RM, descent_RM)


def so_dense_moments(
    params: list[Tensor],
    grads: list[Tensor],
    supports: Sequence[Tensor | None],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    *,
    rule: Rule,
    step: int,
) -> None:
    """Perform one step with moments of every entry, in place. Without supports it is Adam's step.

    Args are those of `so`, but the moments have the shapes of the weights. Order and ages have no
    effect: nothing is pruned, and every entry is as old as its tensor.
    """
    effective = []
    for grad, param, support in zip(grads, params, supports, strict=True):
        grad = _effective_gradient(grad, param, support, rule)
        if support is not None:
            grad = spread(grad, support, param.numel()).view(param.shape)
        effective.append(grad)
    torch._foreach_mul_(exp_avgs, rule.beta1)
    torch._foreach_add_(exp_avgs, effective, alpha=1 - rule.beta1)
    torch._foreach_mul_(exp_avg_sqs, rule.beta2)
    torch._foreach_addcmul_(exp_avg_sqs, effective, effective, value=1 - rule.beta2)

    scales = torch._foreach_div(exp_avg_sqs, 1 - rule.beta2**step)
    torch._foreach_sqrt_(scales)
    torch._foreach_add_(scales, rule.eps)
    descents = torch._foreach_mul(exp_avgs, rule.lr / (1 - rule.beta1**step))
    torch._foreach_div_(descents, scales)
    torch._foreach_sub_(params, descents)


def so_no_moments(
    params: list[Tensor], grads: list[Tensor], supports: Sequence[Tensor | None], *, rule: Rule
) -> None:
    """Perform one step without memory, in place: μ = g~ and ν = g~².

    Each entry read moves by lr · g / (|g| + eps). Args are those of `so`.
    """
    for grad, param, support in zip(grads, params, supports, strict=True):
        grad = _effective_gradient(grad, param, support, rule)
        descent = grad * rule.lr / (grad.abs() + rule.eps)
        if support is None:
            param.sub_(descent)
        else:
            subtract([param], support[None], descent[None])


def moment_dtype(param: Tensor) -> torch.dtype:
    """Return the dtype of a weight's moments: its own, but at least float32."""
    return torch.promote_types(param.dtype, torch.float32)


def _effective_gradient(grad: Tensor, param: Tensor, support: Tensor | None, rule: Rule) -> Tensor:
    """Return the gradient to descend along, on the support of one tensor."""
    weight = read(param, support) if rule.weight_decay else None
    return _regularised(grad.to(moment_dtype(param)), weight, rule)


def _regularised(grad: Tensor, weight: Tensor | None, rule: Rule) -> Tensor:
    """Negate the gradient to maximize, and add weight decay as Adam does (coupled)."""
    grad = -grad if rule.maximize else grad
    return grad if weight is None else grad + weight.to(grad.dtype) * rule.weight_decay


def _descent(mu_E: Tensor, nu_E: Tensor, t: int | Tensor, rule: Rule) -> Tensor:
    """Return lr · μ^ / (sqrt(ν^) + eps), for moments that started at 0 t steps ago."""
    if isinstance(t, Tensor):
        t = t.to(mu_E.dtype)
    mean_E = mu_E * (rule.lr / _bias_correction(rule.beta1, t))
    scale_E = (nu_E * (1 / _bias_correction(rule.beta2, t))).sqrt_()
    return mean_E.div_(scale_E.add_(rule.eps))


def _bias_correction(beta: float, t: int | Tensor) -> float | Tensor:
    """Return 1 - beta^t, the total weight of t values in a decaying mean."""
    if isinstance(t, Tensor):
        # expm1: beta^t can be so close to 1 that the difference loses its digits in float32.
        return -torch.expm1(t * (math.log(beta) if beta else -math.inf))
    return 1 - beta**t


def _draw_tickets(
    params: list[Tensor],
    support_RM: Tensor | None,
    index_RM: Tensor,
    generator: torch.Generator,
) -> Tickets:
    """Draw a number for each entry with moments and each entry read; the first counts for both.

    The M highest of independent, equally distributed numbers mark a uniform subset. The numbers are
    drawn on the CPU, like supports, in float64, which leaves no ties.
    """

    def draw(*shape: int) -> Tensor:
        numbers = torch.rand(shape, dtype=torch.float64, generator=generator)
        return to_device(numbers, index_RM.device)

    score_RM = draw(*index_RM.shape)
    if support_RM is None:
        return score_RM, [draw(param.numel()) for param in params]
    return score_RM, draw(*support_RM.shape).unbind()
