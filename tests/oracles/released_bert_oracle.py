"""The optimizer of SO's released BERT experiment, restated with plain loops over single entries.

It shares no code with so_clip. Its facts: a tensor of two or more dimensions outside of pooler and
classifier keeps M = int(numel * kappa) entries, without a lower bound; all others are dense, with a
bias corrected twice.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


def is_sparse(name: str, ndim: int) -> bool:
    """Return whether the released script puts a tensor into the sparse group."""
    return ndim >= 2 and not name.startswith(("classifier.", "bert.pooler."))


@dataclass
class ReleasedOptimizer:
    """Trains a model's tensors, by name.

    Attributes:
        weights: all tensors, changed in place.
        kappa, T, lr: of the experiment.
        order: update_first (the released code) or prune_first (the paper).
        draw: (name, M) -> flat indices; called every T steps for each sparse tensor.
    """

    weights: dict[str, Tensor]
    kappa: float
    T: int
    lr: float
    order: str
    draw: Callable[[str, int], list[int]]
    steps: int = 0
    support: dict[str, list[int]] = field(default_factory=dict)
    memory: dict[str, dict[int, tuple[float, float]]] = field(default_factory=dict)
    moments: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def step(self, grads: dict[str, Tensor]) -> None:
        """Take one step by the whole gradients."""
        redraw = self.steps % self.T == 0
        self.steps += 1
        for name, weight in self.weights.items():
            if is_sparse(name, weight.ndim):
                if redraw:
                    self.support[name] = self.draw(name, int(weight.numel() * self.kappa))
                self._sparse_step(name, weight.view(-1), grads[name].reshape(-1).tolist())
            else:
                self._dense_step(name, weight, grads[name])

    def _sparse_step(self, name: str, weight: Tensor, grad: list[float]) -> None:
        count = int(weight.numel() * self.kappa)
        read, old = set(self.support[name]), self.memory.get(name, {})
        new = {}
        for i in read | old.keys():
            g = grad[i] if i in read else 0.0
            mu, nu = old.get(i, (0.0, 0.0))
            new[i] = (BETA1 * mu + (1 - BETA1) * g, BETA2 * nu + (1 - BETA2) * g * g)
        best = sorted(new, key=lambda i: (-abs(new[i][0]), i))[:count]
        kept = {i: new[i] for i in best}
        for i, (mu, nu) in (new if self.order == "update_first" else kept).items():
            mu_hat, nu_hat = mu / (1 - BETA1**self.steps), nu / (1 - BETA2**self.steps)
            weight[i] -= self.lr * mu_hat / (math.sqrt(nu_hat) + EPS)
        self.memory[name] = kept

    def _dense_step(self, name: str, weight: Tensor, grad: Tensor) -> None:
        zero = torch.zeros_like(weight)
        mu, nu = self.moments.get(name, (zero, zero))
        mu, nu = BETA1 * mu + (1 - BETA1) * grad, BETA2 * nu + (1 - BETA2) * grad * grad
        self.moments[name] = mu, nu
        weights_sum = 1 - BETA1**self.steps
        rate, mu_hat = self.lr / weights_sum, mu / weights_sum
        weight -= rate * mu_hat / ((nu / (1 - BETA2**self.steps)).sqrt() + EPS)
