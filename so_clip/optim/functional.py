"""One step of SO on a list of tensors: the maths, without the optimizer's bookkeeping.

SO reads the gradient of M entries of a tensor (its support) and keeps the moments of M entries. In
a step the moments cover the union of both sets, at most 2M entries. Then SO prunes them to M:

    g~ = the gradient on the support, 0 elsewhere
    μ  = β1 μ + (1 - β1) g~,   ν = β2 ν + (1 - β2) g~²       on the union
    kept: the M entries of the union with the largest |μ|
    w -= lr · μ / (1 - β1^t) / (sqrt(ν / (1 - β2^t)) + eps)

The last line moves the kept entries (order "prune_first", the paper) or the whole union
("update_first", the released code). Among entries of equal |μ|, the lower index is kept.

`_single_tensor_so` reads like these lines. `step_rows` is the fast path. They agree bit for
bit, because both round products and sums one by one: whether a fused multiply-add is used depends
on the memory address of an entry.

Names end in their shape: R tensors, M entries sampled of each, U entries of a union; E is M or U.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from so_clip.optim.arena import PackedWeights
from so_clip.optim.rates import Rates, Rule, descent, moment_dtype
from so_clip.optim.sparse_entries import largest, locate, read, spread, subtract
from so_clip.optim.support import to_device


@dataclass(frozen=True)
class Moments:
    """Moments of R tensors, M entries each, one row per tensor. A step changes them in place."""

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
    rates: Rates,
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
        rates: of this step. They count t from the tensors' first step, unless moments have ages.
        generator: a CPU generator for random pruning.
        foreach: all tensors together (None, True) or one after the other (False).
    """
    tickets = None
    if rule.moment_selection == "random":
        tickets = _draw_tickets(params, support_RM, moments.index_RM, generator)
    # Without a support, one tensor at a time is fast enough and takes far less memory.
    if foreach is False or support_RM is None:
        _single_tensor_so(params, grads, support_RM, moments, tickets, rule=rule, rates=rates)
    else:
        grad_RM = torch.stack(grads).to(moment_dtype(params[0]))
        weights = SeparateWeights(params)
        step_rows(weights, grad_RM, support_RM, moments, tickets, rule=rule, rates=rates)


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
    rates: Rates,
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
        age_U = None
        if moments.age_RM is not None:
            age_U = pad(moments.age_RM[i], (0, entered)) + 1
        descent_U = descent(mu_U, nu_U, age_U, rule, rates)
        score_U = mu_U.abs()
        if tickets:
            score_U = torch.cat((tickets[0][i], tickets[1][i][entered_M]))
        kept_M = largest(score_U[None], union_U[None], len(index_M))[0]

        moved = kept_M if rule.order == "prune_first" else slice(None)
        subtract([param], union_U[None, moved], descent_U[None, moved])
        index_M.copy_(union_U[kept_M])
        exp_avg_M.copy_(mu_U[kept_M])
        exp_avg_sq_M.copy_(nu_U[kept_M])
        if moments.age_RM is not None and age_U is not None:
            moments.age_RM[i].copy_(age_U[kept_M])
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


class SeparateWeights:
    """R weights that have storages of their own, one per row: one call per weight."""

    def __init__(self, params: list[Tensor]) -> None:
        self._params = params

    def read(self, index_RM: Tensor) -> Tensor:
        """Return the entries at these flat indices of each weight."""
        rows = zip(self._params, index_RM.unbind(), strict=True)
        return torch.stack([read(param, index_M) for param, index_M in rows])

    def subtract(self, index_RM: Tensor, values_RM: Tensor) -> None:
        """Subtract values from the entries at these flat indices."""
        subtract(self._params, index_RM, values_RM)


def step_rows(
    weights: SeparateWeights | PackedWeights,
    grad_RM: Tensor,
    support_RM: Tensor,
    moments: Moments,
    tickets: Tickets | None = None,
    *,
    rule: Rule,
    rates: Rates,
    is_pad_RM: Tensor | None = None,
) -> None:
    """Step all tensors together, in rows of 2M places: M entries with moments, then M entries read.

    An entry that has moments and is read too counts once, in the first half; its place in the
    second half is masked. No line waits for the device.

    Tensors with fewer entries than the others have rows that end in pads, in the support and in the
    moments. A pad never counts, and stays a pad.

    Args:
        weights: the R tensors.
        grad_RM: the gradients on the support, of the moments' dtype. It is overwritten.
        support_RM, moments: see `so`.
        tickets: scores for random pruning.
        rule, rates: of the step.
        is_pad_RM: where a row of the support and of the moments has no entry; None: nowhere.
    """
    m = support_RM.shape[1]
    place_RM = moments.place_RM
    assert place_RM is not None
    weight_RM = weights.read(support_RM) if rule.weight_decay else None
    grad_RM = _regularised(grad_RM, weight_RM, rule)
    # Place M stands for all entries outside the support: their gradient is 0.
    old_grad_RM = pad(grad_RM, (0, 1)).gather(1, place_RM)
    is_old_RM = place_RM.new_zeros((len(place_RM), m + 1), dtype=torch.bool)
    is_old_RM = is_old_RM.scatter_(1, place_RM, True)[:, :m]
    if is_pad_RM is not None:
        is_old_RM = is_old_RM | is_pad_RM

    mu_RM = moments.exp_avg_RM.mul_(rule.beta1).add_(old_grad_RM * (1 - rule.beta1))
    nu_RM = moments.exp_avg_sq_RM.mul_(rule.beta2)
    nu_RM += old_grad_RM.square_().mul_(1 - rule.beta2)
    new_mu_RM = grad_RM * (1 - rule.beta1)
    age_RM, column_M = moments.age_RM, torch.arange(m, device=place_RM.device)
    new = Moments(
        index_RM=support_RM,
        place_RM=column_M.expand_as(place_RM),
        exp_avg_RM=new_mu_RM,
        exp_avg_sq_RM=grad_RM.square_().mul_(1 - rule.beta2),
        age_RM=None if age_RM is None else torch.ones_like(age_RM.add_(1)),
    )
    if rule.order == "update_first":
        _descend(weights, moments, None, rule, rates)
        _descend(weights, new, is_old_RM, rule, rates)

    score_RM, new_score_RM = mu_RM.abs(), new_mu_RM.abs()
    if tickets:
        score_RM, new_score_RM = tickets[0], torch.stack(list(tickets[1]))
    if is_pad_RM is not None:
        score_RM = score_RM.masked_fill(is_pad_RM, -1)
    scores = (score_RM, new_score_RM.masked_fill_(is_old_RM, -1))
    union = [torch.cat(pair, dim=1) for pair in zip(moments.tensors(), new.tensors(), strict=True)]
    padded = is_pad_RM is not None
    kept_RM = largest(torch.cat(scores, dim=1), union[0], m, ordered=padded)
    if is_pad_RM is not None:
        # The best M of a shorter row come first. The rest are its pads, in their own columns.
        kept_RM = torch.where(is_pad_RM, column_M, kept_RM)
    for moment_RM, union_RU in zip(moments.tensors(), union, strict=True):
        torch.gather(union_RU, 1, kept_RM, out=moment_RM)
    if rule.order == "prune_first":
        _descend(weights, moments, None, rule, rates)


def _descend(
    weights: SeparateWeights | PackedWeights,
    moments: Moments,
    still_RM: Tensor | None,
    rule: Rule,
    rates: Rates,
) -> None:
    """Move all weights at `moments.index_RM`, except those marked in `still_RM`."""
    descent_RM = descent(moments.exp_avg_RM, moments.exp_avg_sq_RM, moments.age_RM, rule, rates)
    if still_RM is not None:
        descent_RM = descent_RM.masked_fill_(still_RM, 0)
    weights.subtract(moments.index_RM, descent_RM)


def so_dense_moments(
    params: list[Tensor],
    grads: list[Tensor],
    supports: Sequence[Tensor | None],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    *,
    rule: Rule,
    rates: Rates,
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

    scales = torch._foreach_div(exp_avg_sqs, rates.variance_weight)
    torch._foreach_sqrt_(scales)
    torch._foreach_add_(scales, rule.eps)
    descents = torch._foreach_mul(exp_avgs, rates.step_size)
    torch._foreach_div_(descents, scales)
    torch._foreach_sub_(params, descents)


def so_no_moments(
    params: list[Tensor],
    grads: list[Tensor],
    supports: Sequence[Tensor | None],
    *,
    rule: Rule,
    rates: Rates,
) -> None:
    """Perform one step without memory, in place: μ = g~ and ν = g~².

    Each entry read moves by lr · g / (|g| + eps). Args are those of `so`.
    """
    for grad, param, support in zip(grads, params, supports, strict=True):
        grad = _effective_gradient(grad, param, support, rule)
        moved = grad * rates.lr / (grad.abs() + rule.eps)
        if support is None:
            param.sub_(moved)
        else:
            subtract([param], support[None], moved[None])


def _effective_gradient(grad: Tensor, param: Tensor, support: Tensor | None, rule: Rule) -> Tensor:
    """Return the gradient to descend along, on the support of one tensor."""
    weight = read(param, support) if rule.weight_decay else None
    return _regularised(grad.to(moment_dtype(param)), weight, rule)


def _regularised(grad: Tensor, weight: Tensor | None, rule: Rule) -> Tensor:
    """Negate the gradient to maximize, and add weight decay as Adam does (coupled)."""
    grad = -grad if rule.maximize else grad
    return grad if weight is None else grad + weight.to(grad.dtype) * rule.weight_decay


def _draw_tickets(
    params: list[Tensor],
    support_RM: Tensor | None,
    index_RM: Tensor,
    generator: torch.Generator,
) -> Tickets:
    """Draw a number for each entry with moments and each entry read; the first counts for both.

    The M highest of independent, equally distributed numbers mark a uniform subset. The numbers are
    drawn on the CPU, like supports, and in float64, so that none are equal.
    """

    def draw(*shape: int) -> Tensor:
        numbers = torch.rand(shape, dtype=torch.float64, generator=generator)
        return to_device(numbers, index_RM.device)

    score_RM = draw(*index_RM.shape)
    if support_RM is None:
        return score_RM, [draw(param.numel()) for param in params]
    return score_RM, draw(*support_RM.shape).unbind()
