"""SO as in its released code, one matrix at a time: the reference for the engine.

It was written from a description of that code (github nairouz/SO) and does the same work in fewer
calls. It permutes all entries for each new support, compares all pairs of indices to intersect two
sets, and computes dense gradients but reads few of their entries.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class ReferenceSO(torch.optim.Optimizer):
    """Sparse Optimization of matrices, one at a time.

    Args:
        params: matrices.
        lr, betas, eps, density_ratio, T: as in SO.
        order: prune_first (paper) | update_first (released code).
        seed: of the supports.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        density_ratio: float = 5e-4,
        T: int = 10,
        order: str = "prune_first",
        seed: int = 0,
    ) -> None:
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}
        defaults = {"lr": lr, "betas": betas, "eps": eps, "density_ratio": density_ratio, "T": T}
        super().__init__(params, defaults | {"order": order})

    def draw(self, param: Tensor, count: int) -> Tensor:
        """Draw a support: the first `count` flat indices of a random permutation.

        The permutation is made on the parameter's device, as the released code does.
        """
        device = param.device
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        generator = self._generators[device]
        return torch.randperm(param.numel(), generator=generator, device=device)[:count]

    def allocate(self) -> None:
        """Create the state that the first step needs."""
        for group in self.param_groups:
            for param in group["params"]:
                if not self.state[param]:
                    self.state[param] = self._new_state(param, group["density_ratio"])

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Perform one step on every matrix that has a gradient."""
        self.allocate()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._step(param, param.grad, group, self.state[param])

    def _new_state(self, param: Tensor, density_ratio: float) -> dict[str, Any]:
        count = max(1, int(param.numel() * density_ratio))
        entries = param.new_zeros(count)
        return {
            "step": 0,
            "support": torch.zeros(2, count, dtype=torch.int64, device=param.device),
            "index": torch.full((2, 0), -1, device=param.device),
            "exp_avg": entries[:0],
            "exp_avg_sq": entries[:0].clone(),
        }

    def _step(
        self, param: Tensor, grad: Tensor, group: dict[str, Any], state: dict[str, Any]
    ) -> None:
        count, (beta1, beta2) = state["support"].shape[1], group["betas"]
        if state["step"] == 0 or (group["T"] and state["step"] % group["T"] == 0):
            flat = self.draw(param, count)
            state["support"] = torch.stack((flat // param.shape[1], flat % param.shape[1]))
        state["step"] += 1
        support, index = state["support"], state["index"]
        seen = grad[support[0], support[1]]

        is_same = (index[:, :, None] == support[:, None, :]).all(dim=0)  # [remembered, seen]
        old, at = is_same.nonzero(as_tuple=True)
        new = ~is_same.any(dim=0)
        index = torch.cat((index, support[:, new]), dim=1)
        grad_old = torch.zeros_like(state["exp_avg"])
        grad_old[old] = seen[at]
        grad_union = torch.cat((grad_old, seen[new]))
        entered = torch.zeros_like(seen[new])
        mean = torch.cat((state["exp_avg"], entered)) * beta1 + grad_union * (1 - beta1)
        square = torch.cat((state["exp_avg_sq"], entered)) * beta2
        square = square + grad_union.square() * (1 - beta2)

        if group["order"] == "update_first":
            _descend(param, index, mean, square, group, state["step"])
        kept = mean.abs().topk(count).indices
        state["index"] = index[:, kept]
        state["exp_avg"], state["exp_avg_sq"] = mean[kept], square[kept]
        if group["order"] == "prune_first":
            _descend(param, index[:, kept], mean[kept], square[kept], group, state["step"])


def _descend(
    param: Tensor,
    index: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    group: dict[str, Any],
    step: int,
) -> None:
    mean = exp_avg / (1 - group["betas"][0] ** step)
    square = exp_avg_sq / (1 - group["betas"][1] ** step)
    param[index[0], index[1]] -= group["lr"] * mean / (square.sqrt() + group["eps"])
