"""The shared update of the weights and the masks of the experts.

Tensor names end in their shape: M experts, X the shape of a weight, G the same shape with 1 in the
dimensions that share one logit.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from so_clip.clip.roles import Part
from so_clip.smat.options import BETA, Granularity, SmatOptions

# A hard-concrete value is stretched from (0, 1) to (LOW, HIGH) and then clipped to [0, 1].
LOW, HIGH = -0.1, 1.1
LOG_ALPHA_LIMITS = (math.log(0.01), math.log(100))


def mask(log_alpha: Tensor, beta: float = BETA, noise: Tensor | None = None) -> Tensor:
    """Return hard-concrete values in [0, 1]: clip((HIGH - LOW) · sigmoid(log_alpha/beta) + LOW).

    Args:
        log_alpha: logits.
        beta: the larger, the softer.
        noise: added to the logits.

    Source: Louizos et al., Learning Sparse Neural Networks through L0 Regularization, arXiv
    1712.01312, equations 10 and 11.
    """
    logits = log_alpha if noise is None else log_alpha + noise
    return ((HIGH - LOW) * torch.sigmoid(logits / beta) + LOW).clamp(0, 1)


def expected_nonzero(log_alpha: Tensor) -> Tensor:
    """Return the probability that a value with logistic noise is not zero (arXiv 1712.01312)."""
    return torch.sigmoid(log_alpha - BETA * math.log(-LOW / HIGH))


class Experts(nn.Module):
    """M masks of one update: expert m changes the weights by mask_m · delta.

    Args:
        parts: the weights to change.
        options: see SmatOptions.
        generator: of the first logits.

    Attributes:
        names: of the weights, in the order of `parts`.
        delta: for each weight its update, zero at first.
        log_alpha: for each weight the logits of its masks, [M, ...]; see `logit_shape`.
    """

    def __init__(
        self, parts: Sequence[Part], options: SmatOptions, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.parts, self.options = tuple(parts), options
        self.names = tuple(part.name for part in parts)
        self.delta = nn.ParameterList(nn.Parameter(torch.zeros(part.shape)) for part in parts)
        shapes = [
            (options.experts, *logit_shape(part.shape, options.granularity)) for part in parts
        ]
        self.log_alpha = nn.ParameterList(
            nn.Parameter(options.first_spread * torch.randn(shape, generator=generator))
            for shape in shapes
        )
        self.clamp()

    @property
    def count(self) -> int:
        """The number of weights that the experts can change."""
        return sum(delta.numel() for delta in self.delta)

    @property
    def logits_per_expert(self) -> int:
        """The number of logits of one expert."""
        return sum(log_alpha[0].numel() for log_alpha in self.log_alpha)

    @torch.no_grad()
    def clamp(self) -> None:
        """Move the logits into their limits, as the released code does before each use."""
        for log_alpha in self.log_alpha:
            log_alpha.clamp_(*LOG_ALPHA_LIMITS)

    @torch.no_grad()
    def merged(
        self,
        base: Mapping[str, Tensor],
        expert_M: Tensor,
        beta: float = BETA,
        noise_seed: int | None = None,
    ) -> dict[str, Tensor]:
        """Return new weights: base + (sum over m of expert_m · mask_m) · delta.

        Args:
            base: the frozen weights, by name.
            expert_M: weights of the experts.
            beta: of the masks.
            noise_seed: of the masks' noise; None: no noise.
        """
        return {
            name: base[name] + self._update(index, expert_M, beta, noise_seed)
            for index, name in enumerate(self.names)
        }

    @torch.no_grad()
    def merge_into(self, base: Mapping[str, Tensor], expert_M: Tensor, beta: float = BETA) -> None:
        """Change weights in place to what `merged` returns, with the memory of one update.

        Args:
            base: the weights, by name. Delta and masks may be on another device; they are moved
                one weight at a time.
            expert_M: weights of the experts, on the device of `base`.
            beta: of the masks.
        """
        for index, name in enumerate(self.names):
            base[name].add_(self._update(index, expert_M, beta, None))

    @torch.no_grad()
    def backward(
        self,
        expert_M: Tensor,
        gradients: Mapping[str, Tensor],
        pressure_M: Tensor,
        *,
        scale: float = 1.0,
        noise_seed: int | None = None,
    ) -> Tensor:
        """Add to the gradients of delta and log_alpha; return that of `expert_M`, [M].

            loss = sum over weights of <gradient, merged weight> + sum of pressure_m · E[L0]_m

        The formulas are written out, one mask after the other: autograd would keep several copies
        of all masks of a weight.

        Args:
            expert_M: weights of the experts. Its gradient is that of the first term.
            gradients: of a loss, with respect to the merged weights.
            pressure_M: factor of each expert's expected share of weights that are not zero.
            scale: factor of all gradients.
            noise_seed: as for `merged`.
        """
        of_experts_M = torch.zeros_like(expert_M)
        for index, name in enumerate(self.names):
            delta, log_alpha = self.delta[index], self.log_alpha[index]
            noise_M = self._noise(index, noise_seed)
            pulled_G = _summed_to(gradients[name] * delta, log_alpha.shape[1:])
            mixed_G = torch.zeros_like(pulled_G)
            of_masks = torch.empty_like(log_alpha)
            covered = delta.numel() / (log_alpha[0].numel() * self.count)
            for expert, logits_G in enumerate(log_alpha):
                hard_G, slope_G = _mask_and_slope(logits_G, noise_M[expert])
                of_experts_M[expert] += (hard_G * pulled_G).sum()
                mixed_G.add_(hard_G.mul_(expert_M[expert]))
                torch.mul(slope_G.mul_(expert_M[expert]), pulled_G, out=of_masks[expert])
                alive_G = expected_nonzero(logits_G)
                alive_G.mul_(1 - alive_G).mul_(pressure_M[expert] * covered)
                of_masks[expert].add_(alive_G)
            _add_gradient(delta, (mixed_G * gradients[name]).mul_(scale))
            _add_gradient(log_alpha, of_masks.mul_(scale))
        return scale * of_experts_M

    @torch.no_grad()
    def sparsity_M(self) -> Tensor:
        """Return the share of weights that each mask makes zero."""
        zeros_M = torch.stack(
            [
                (mask(log_alpha, BETA) == 0).flatten(1).sum(dim=1) * (delta.numel() // logits)
                for log_alpha, delta in zip(self.log_alpha, self.delta, strict=True)
                if (logits := log_alpha[0].numel())
            ]
        ).sum(dim=0)
        return zeros_M / self.count

    def _update(self, index: int, expert_M: Tensor, beta: float, noise_seed: int | None) -> Tensor:
        log_alpha, noise_M = self.log_alpha[index], self._noise(index, noise_seed)
        log_alpha = log_alpha.to(expert_M.device)
        mixed_G = torch.zeros_like(log_alpha[0])
        for expert, logits_G in enumerate(log_alpha):
            mixed_G.add_(mask(logits_G, beta, noise_M[expert]).mul_(expert_M[expert]))
        return mixed_G * self.delta[index].to(expert_M.device)

    def _noise(self, index: int, seed: int | None) -> Tensor | list[None]:
        log_alpha = self.log_alpha[index]
        return [None] * len(log_alpha) if seed is None else logistic_noise(log_alpha, seed + index)


def _mask_and_slope(log_alpha: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return `mask` and its derivative. The derivative of a clipped mask is 0."""
    logits = log_alpha if noise is None else log_alpha + noise
    soft = torch.sigmoid(logits / BETA)
    stretched = (HIGH - LOW) * soft + LOW
    slope = soft.mul_(1 - soft).mul_((HIGH - LOW) / BETA)
    slope.masked_fill_((stretched < 0) | (stretched > 1), 0)
    return stretched.clamp_(0, 1), slope


def _summed_to(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Return sums over the dimensions in which `shape` has 1."""
    shared = [place for place, size in enumerate(shape) if size != values.shape[place]]
    return values.sum(dim=shared, keepdim=True) if shared else values


def _add_gradient(parameter: Tensor, gradient: Tensor) -> None:
    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


def logit_shape(shape: Sequence[int], granularity: Granularity) -> tuple[int, ...]:
    """Return the shape of the logits of one mask over a weight of this shape."""
    if granularity == "weight":
        return tuple(shape)
    rows = shape[0] if granularity == "row" else 1
    return (rows, *[1] * (len(shape) - 1))


def logistic_noise(like: Tensor, seed: int) -> Tensor:
    """Return logistic noise log(u / (1 - u)) of the shape and on the device of a tensor."""
    generator = torch.Generator(like.device).manual_seed(seed)
    uniform = torch.empty_like(like, requires_grad=False).uniform_(
        1e-6, 1 - 1e-6, generator=generator
    )
    return torch.logit(uniform)
