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

    def backward(
        self,
        expert_M: Tensor,
        gradients: Mapping[str, Tensor],
        pressure_M: Tensor,
        *,
        scale: float = 1.0,
        noise_seed: int | None = None,
    ) -> None:
        """Add to the gradients of delta, log_alpha and `expert_M`, one weight after the other.

            loss = sum over weights of <gradient, merged weight> + sum of pressure_m · E[L0]_m

        Args:
            expert_M: weights of the experts, a leaf; its gradient is that of the first term.
            gradients: of a loss, with respect to the merged weights.
            pressure_M: factor of each expert's expected share of weights that are not zero.
            scale: factor of all gradients.
            noise_seed: as for `merged`.
        """
        total = self.count
        for index, name in enumerate(self.names):
            with torch.enable_grad():
                update = self._update(index, expert_M, BETA, noise_seed)
                share_M = expected_nonzero(self.log_alpha[index]).flatten(1).mean(dim=1)
                pressure = (pressure_M * share_M).sum() * (update.numel() / total)
                loss = (gradients[name] * update).sum() + pressure
            (scale * loss).backward()

    @torch.no_grad()
    def sparsity_M(self, beta: float = BETA) -> Tensor:
        """Return the share of weights that each mask makes zero."""
        zeros_M = torch.stack(
            [
                (mask(log_alpha, beta) == 0).flatten(1).sum(dim=1) * (delta.numel() // logits)
                for log_alpha, delta in zip(self.log_alpha, self.delta, strict=True)
                if (logits := log_alpha[0].numel())
            ]
        ).sum(dim=0)
        return zeros_M / self.count

    def _update(self, index: int, expert_M: Tensor, beta: float, noise_seed: int | None) -> Tensor:
        log_alpha = self.log_alpha[index].to(expert_M.device)
        noise = None
        if noise_seed is not None:
            noise = logistic_noise(log_alpha, noise_seed + index)
        masks = mask(log_alpha, beta, noise)
        return torch.tensordot(expert_M, masks, dims=1) * self.delta[index].to(expert_M.device)


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
