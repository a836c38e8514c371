"""AdamW that clips the gradient before each step, as WiSE-FT's authors train."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from so_clip.errors import InputError
from so_clip.optim.options import is_real


class ClippedAdamW(torch.optim.AdamW):
    """torch's AdamW; a step first scales the gradient of all tensors together to a largest norm.

    The loop unscales the gradients of half precision before it calls `step`, so the norm is that of
    the loss itself.

    Args:
        params, lr, betas, eps, weight_decay: as for torch.optim.AdamW.
        max_norm: the largest norm, above 0.

    Raises:
        InputError: max_norm is out of range.

    Source: src/models/finetune.py of github mlfoundations/wise-ft (arXiv 2109.01903).
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 3e-5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        max_norm: float = 1.0,
    ) -> None:
        if not is_real(max_norm) or not max_norm > 0:
            raise InputError(f"optimizer.max_norm={max_norm}: must be a number above 0.")
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        self.max_norm = float(max_norm)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Clip the gradient, then take AdamW's step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        tensors = [tensor for group in self.param_groups for tensor in group["params"]]
        torch.nn.utils.clip_grad_norm_(tensors, self.max_norm)
        super().step()
        return loss
