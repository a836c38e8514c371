"""One step of SO on a list of tensors: the maths, free of the optimizer's bookkeeping.

Of a tensor, M entries are seen (its support) and M are remembered (its moments). In a step the
moments live on the union of both, at most 2M entries; then all but M of them are forgotten:

    g~ = the gradient on the support, 0 elsewhere
    μ  = β1 μ + (1 - β1) g~,   ν = β2 ν + (1 - β2) g~²       on the union
    kept: the M entries of the union with the largest |μ|
    w -= lr · μ / (1 - β1^t) / (sqrt(ν / (1 - β2^t)) + eps)

The last line touches what is kept (order "prune_first", the paper) or all of the union
("update_first", the released code). Of entries of equal |μ|, the one of lower index is kept.

Names end in their shape: R tensors, M entries sampled of each, U entries of a union; E is M or U.
Products and sums round one by one (a fused multiply-add is used or not depending on where in memory
an entry lies), so that both implementations agree bit for bit.
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
    """The settings that a step needs; SO says what they mean."""

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
    """What is remembered of R tensors, M entries each, row by row; changed in place."""

    index_RM: Tensor  # which entries, int64, in any order
    place_RM: Tensor | None  # where in the support each of them is, int64, M: nowhere
    exp_avg_RM: Tensor  # μ
    exp_avg_sq_RM: Tensor  # ν
    age_RM: Tensor | None  # for how many steps each has been remembered, int32: t, if not None

    def tensors(self) -> list[Tensor]:
        """Return those that there are, in this order."""
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
        grads: the gradients' values on the supports [M]; if that is None, whole gradients.
        support_RM: the entries that are seen, int64, ascending; None to see everything.
        moments: float32, or float64 for float64 weights; with places unless everything is seen.
        rule: the settings.
        step: the number of this step, the first being 1; t, unless the moments have ages.
        generator: draws what random pruning keeps.
        foreach: all tensors at once (default), or one after the other.
    """
    tickets = None
    if rule.moment_selection == "random":
        tickets = _draw_tickets(params, support_RM, moments.index_RM, generator)
    # Where everything is seen, one tensor at a time is fast enough, and takes far less memory.
    if foreach is False or support_RM is None:
        _single_tensor_so(params, grads, support_RM, moments, tickets, rule=rule, step=step)
    else:
        _multi_tensor_so(params, grads, support_RM, moments, tickets, rule=rule, step=step)


# Random numbers that decide what is kept: of the entries remembered [R, M] and of those seen [R, M]
# (where everything is: one [numel] a tensor).
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
        grad_M = _seen(grads[i], param, support_M, rule).reshape(-1)
        union_U, at_M, entered_M = _union(index_M, support_M, param.numel())
        entered = len(union_U) - len(index_M)
        grad_U = spread(grad_M, at_M, len(union_U))

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
    """Return the union: what is remembered, then what enters; where in it each seen entry is; and
    which of the seen entries enter, not being remembered."""
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
    """All tensors at once, in rows of 2M places, whatever the data: the M entries remembered, then
    the M seen, which count for nothing where they are remembered too.

    The weights, each tensor's in storage of its own, are read and written by one call a tensor; all
    else is one call for all of them. Nothing here waits for the device.
    """
    m = support_RM.shape[1]
    place_RM = moments.place_RM
    assert place_RM is not None
    grad_RM = _gradients(params, grads, support_RM, rule)
    # One place more than M, for all that is not seen: its gradient is 0.
    old_grad_RM = pad(grad_RM, (0, 1)).gather(1, place_RM)
    is_old_RM = place_RM.new_zeros((len(params), m + 1), dtype=torch.bool)
    is_old_RM = is_old_RM.scatter_(1, place_RM, True)[:, :m]

    mu_RM = moments.exp_avg_RM.mul_(rule.beta1).add_(old_grad_RM * (1 - rule.beta1))
    nu_RM = moments.exp_avg_sq_RM.mul_(rule.beta2)
    nu_RM += old_grad_RM.square_().mul_(1 - rule.beta2)
    new_place_RM = torch.arange(m, device=place_RM.device).expand_as(place_RM)
    new = [support_RM, new_place_RM, grad_RM * (1 - rule.beta1)]
    new.append(grad_RM.square_().mul_(1 - rule.beta2))
    if moments.age_RM is not None:
        new.append(torch.ones_like(moments.age_RM.add_(1)))
    if rule.order == "update_first":
        _descend(params, moments.tensors(), None, rule, step)
        _descend(params, new, is_old_RM, rule, step)

    score_RM, new_score_RM = mu_RM.abs(), new[2].abs()
    if tickets:
        score_RM, new_score_RM = tickets[0], torch.stack(list(tickets[1]))
    scores = (score_RM, new_score_RM.masked_fill_(is_old_RM, -1))
    union = [torch.cat(pair, dim=1) for pair in zip(moments.tensors(), new, strict=True)]
    kept_RM = largest(torch.cat(scores, dim=1), union[0], m)
    for each_RM, each_RU in zip(moments.tensors(), union, strict=True):
        torch.gather(each_RU, 1, kept_RM, out=each_RM)
    if rule.order == "prune_first":
        _descend(params, moments.tensors(), None, rule, step)


def _gradients(params: list[Tensor], grads: list[Tensor], support_RM: Tensor, rule: Rule) -> Tensor:
    """Return what `_seen` does, of all tensors; the caller's to write to."""
    weight_RM = None
    if rule.weight_decay:
        weight_RM = torch.stack(
            [read(*each) for each in zip(params, support_RM.unbind(), strict=True)]
        )
    grad_RM = torch.stack(grads).to(moment_dtype(params[0]))
    return _regularised(grad_RM, weight_RM, rule)


def _descend(
    params: list[Tensor], entries: list[Tensor], still_RM: Tensor | None, rule: Rule, step: int
) -> None:
    """Move all weights at `entries` [index, place, μ, ν(, age)] that are not to stay still."""
    index_RM, _, mu_RM, nu_RM, *age = entries
    descent_RM = _descent(mu_RM, nu_RM, age[0] if age else step, rule)
    if still_RM is not None:
        descent_RM = descent_RM.masked_fill_(still_RM, 0)
    subtract(params, index_RM, descent_RM)


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
    """Perform one step that forgets nothing, in place; if it also sees everything, it is Adam's.

    Args as those of `so`, with moments of every entry, shaped like the weights. Order and ages do
    not matter here: nothing is pruned, and all entries are as old as the tensor.
    """
    seen = []
    for grad, param, support in zip(grads, params, supports, strict=True):
        grad = _seen(grad, param, support, rule)
        if support is not None:
            grad = spread(grad, support, param.numel()).view(param.shape)
        seen.append(grad)
    torch._foreach_mul_(exp_avgs, rule.beta1)
    torch._foreach_add_(exp_avgs, seen, alpha=1 - rule.beta1)
    torch._foreach_mul_(exp_avg_sqs, rule.beta2)
    torch._foreach_addcmul_(exp_avg_sqs, seen, seen, value=1 - rule.beta2)

    scales = torch._foreach_div(exp_avg_sqs, 1 - rule.beta2**step)
    torch._foreach_sqrt_(scales)
    torch._foreach_add_(scales, rule.eps)
    descents = torch._foreach_mul(exp_avgs, rule.lr / (1 - rule.beta1**step))
    torch._foreach_div_(descents, scales)
    torch._foreach_sub_(params, descents)


def so_no_moments(
    params: list[Tensor], grads: list[Tensor], supports: Sequence[Tensor | None], *, rule: Rule
) -> None:
    """Perform one step that remembers nothing, in place: μ = g~ and ν = g~².

    Each entry seen moves by lr · g / (|g| + eps). Args as those of `so`.
    """
    for grad, param, support in zip(grads, params, supports, strict=True):
        seen = _seen(grad, param, support, rule)
        descent = seen * rule.lr / (seen.abs() + rule.eps)
        if support is None:
            param.sub_(descent)
        else:
            subtract([param], support[None], descent[None])


def moment_dtype(param: Tensor) -> torch.dtype:
    """Return the type that moments are kept in: the weight's, but never less than float32."""
    return torch.promote_types(param.dtype, torch.float32)


def _seen(grad: Tensor, param: Tensor, support: Tensor | None, rule: Rule) -> Tensor:
    """Return the gradient to descend along, of what is seen of one tensor."""
    weight = read(param, support) if rule.weight_decay else None
    return _regularised(grad.to(moment_dtype(param)), weight, rule)


def _regularised(grad: Tensor, weight: Tensor | None, rule: Rule) -> Tensor:
    """Turn the gradient where it is to be climbed, and add weight decay as Adam does (coupled)."""
    grad = -grad if rule.maximize else grad
    return grad if weight is None else grad + weight.to(grad.dtype) * rule.weight_decay


def _descent(mu_E: Tensor, nu_E: Tensor, t: int | Tensor, rule: Rule) -> Tensor:
    """Return lr · μ^ / (sqrt(ν^) + eps), for moments that started at 0 t steps ago."""
    if isinstance(t, Tensor):
        t = t.to(mu_E.dtype)
    mean_E = mu_E * (rule.lr / _weight_of(rule.beta1, t))
    scale_E = (nu_E * (1 / _weight_of(rule.beta2, t))).sqrt_()
    return mean_E.div_(scale_E.add_(rule.eps))


def _weight_of(beta: float, t: int | Tensor) -> float | Tensor:
    """Return 1 - beta^t: what the t values in a decaying mean weigh together."""
    if isinstance(t, Tensor):
        # expm1, for beta^t may be so close to 1 that little would be left of it in float32.
        return -torch.expm1(t * (math.log(beta) if beta else -math.inf))
    return 1 - beta**t


def _draw_tickets(
    params: list[Tensor],
    support_RM: Tensor | None,
    index_RM: Tensor,
    generator: torch.Generator,
) -> Tickets:
    """Draw a number for each entry remembered and each entry seen; of one that is both, the first.

    Whoever keeps the M highest of independent, equally distributed numbers keeps a uniform subset.
    They are drawn on the CPU, as supports are; float64 leaves no ties.
    """

    def draw(*shape: int) -> Tensor:
        numbers = torch.rand(shape, dtype=torch.float64, generator=generator)
        return to_device(numbers, index_RM.device)

    remembered_RM = draw(*index_RM.shape)
    if support_RM is None:
        return remembered_RM, [draw(param.numel()) for param in params]
    return remembered_RM, draw(*support_RM.shape).unbind()
