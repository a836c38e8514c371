"""SO, restated for one tensor in float64, from the definition alone: dense arrays and masks.

Two classes for the two orders, each complete in itself. What random draws decide is given to them:
the support, and, where moments are pruned at random, what is kept.
"""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Settings:
    """As SO's arguments of these names; `count` is M."""

    count: int
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    bias_correction: str = "step"
    moment_selection: str = "importance"
    maximize: bool = False


@dataclass
class PruneFirst:
    """The paper's order: merge, keep M, move those M."""

    weight: np.ndarray  # [N] float64
    settings: Settings
    step_number: int = 0
    remembered: np.ndarray = field(init=False)  # [N] bool

    def __post_init__(self) -> None:
        self.remembered = np.zeros(self.weight.size, dtype=bool)
        self.mu = np.zeros(self.weight.size)
        self.nu = np.zeros(self.weight.size)
        self.age = np.zeros(self.weight.size)

    def step(self, grad: np.ndarray, support: np.ndarray, kept: np.ndarray | None = None) -> None:
        """Take a step by a gradient [N], seen on the mask `support` [N]; `kept`: a mask [N]."""
        s, (b1, b2) = self.settings, self.settings.betas
        self.step_number += 1
        direction = -grad if s.maximize else grad
        g = np.where(support, direction + s.weight_decay * self.weight, 0.0)
        if s.moment_selection == "none":
            self.weight = self.weight - np.where(support, s.lr * g / (np.abs(g) + s.eps), 0.0)
            return
        union = self.remembered | support
        if s.moment_selection == "dense":
            union = np.ones_like(union)
        mu = np.where(union, b1 * self.mu + (1 - b1) * g, 0.0)
        nu = np.where(union, b2 * self.nu + (1 - b2) * g * g, 0.0)
        age = np.where(union, self.age + 1, 0)

        if s.moment_selection == "dense":
            kept = union
        elif s.moment_selection == "importance":
            by_importance = sorted(np.flatnonzero(union), key=lambda i: (-abs(mu[i]), i))
            kept = np.zeros_like(union)
            kept[by_importance[: s.count]] = True
        assert kept is not None
        assert not (kept & ~union).any()
        self.remembered = kept
        self.mu, self.nu = np.where(kept, mu, 0.0), np.where(kept, nu, 0.0)
        self.age = np.where(kept, age, 0)

        t = self.age if s.bias_correction == "age" else np.full(self.age.shape, self.step_number)
        for i in np.flatnonzero(kept):
            mu_hat = self.mu[i] / (1 - b1 ** t[i])
            nu_hat = self.nu[i] / (1 - b2 ** t[i])
            lr = s.lr / (1 - b1 ** t[i]) if s.bias_correction == "twice" else s.lr
            self.weight[i] -= lr * mu_hat / (np.sqrt(nu_hat) + s.eps)


@dataclass
class UpdateFirst:
    """The released code's order: merge, move all of the union, then keep M."""

    weight: np.ndarray  # [N] float64
    settings: Settings
    step_number: int = 0

    def __post_init__(self) -> None:
        n = self.weight.size
        self.remembered, self.mu, self.nu = np.zeros(n, dtype=bool), np.zeros(n), np.zeros(n)
        self.entered_at = np.full(n, -1)

    def step(self, grad: np.ndarray, support: np.ndarray, kept: np.ndarray | None = None) -> None:
        """Take a step by a gradient [N], seen on the mask `support` [N]; `kept`: a mask [N]."""
        s, (b1, b2) = self.settings, self.settings.betas
        g = (-1.0 if s.maximize else 1.0) * grad + s.weight_decay * self.weight
        g[~support] = 0.0
        if s.moment_selection == "none":
            self.weight[support] -= s.lr * g[support] / (np.abs(g[support]) + s.eps)
            return
        everything = s.moment_selection == "dense"
        for i in range(self.weight.size):
            if (support[i] or everything) and not self.remembered[i]:
                self.entered_at[i] = self.step_number
        self.step_number += 1
        union = (self.entered_at >= 0).nonzero()[0]
        self.mu[union] = b1 * self.mu[union] + (1 - b1) * g[union]
        self.nu[union] = b2 * self.nu[union] + (1 - b2) * g[union] ** 2

        t = np.full(union.size, float(self.step_number))
        if s.bias_correction == "age":
            t -= self.entered_at[union]
        root = np.sqrt(self.nu[union] / (1 - b2**t))
        divisor = (1 - b1**t) ** 2 if s.bias_correction == "twice" else 1 - b1**t
        self.weight[union] -= s.lr * self.mu[union] / divisor / (root + s.eps)

        if everything:
            stay = union
        elif s.moment_selection == "importance":
            order = np.lexsort((union, -np.abs(self.mu[union])))
            stay = union[order][: s.count]
        else:
            assert kept is not None
            stay = kept.nonzero()[0]
            assert set(stay) <= set(union)
        gone = np.setdiff1d(np.arange(self.weight.size), stay)
        self.mu[gone], self.nu[gone], self.entered_at[gone] = 0.0, 0.0, -1
        self.remembered[:] = False
        self.remembered[stay] = True
