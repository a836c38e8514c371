"""pytorch-optimizer's GaLore: AdamW on gradients projected to low rank."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from so_clip.errors import InputError
from so_clip.system.commands import install

try:
    from pytorch_optimizer import GaLore
    from pytorch_optimizer.optimizer.utils.galore import GaLoreProjector
except ImportError as error:  # an optional package: `galore` says how to install it
    missing = str(error)
    GaLore = torch.optim.Optimizer  # type: ignore[misc, assignment]
else:
    missing = ""

PROJECTIONS = ("std", "reverse_std", "right", "left", "full")
_KEY = "projector"  # in the state of a tensor
_OPTIONS = ("rank", "update_proj_gap", "scale", "projection_type")


def galore(
    params: Iterable[Tensor],
    lr: float = 2e-4,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    rank: int = 4,
    update_proj_gap: int = 200,
    scale: float = 0.25,
    projection_type: str = "std",
) -> torch.optim.Optimizer:
    """Return a GaLore optimizer. Matrices are projected; vectors stay dense.

    A convolution [O, I, k, k] is projected as the matrix [O, I k k].

    Args:
        params: tensors to train.
        lr, betas, eps, weight_decay: as in AdamW.
        rank: of the projected gradients, at least 1.
        update_proj_gap: steps between two projections, at least 1.
        scale: factor on the projected update.
        projection_type: std | reverse_std | right | left | full.

    Raises:
        InputError: a setting is out of range, or pytorch-optimizer is not installed.

    Source: arXiv 2403.03507.
    """
    for name, value in (("rank", rank), ("update_proj_gap", update_proj_gap)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"optimizer.{name}={value}: must be a whole number, 1 or more.")
    if projection_type not in PROJECTIONS:
        raise InputError(
            f"optimizer.projection_type={projection_type}: must be {' or '.join(PROJECTIONS)}."
        )
    if missing:
        raise InputError(
            f"optimizer=galore needs pytorch-optimizer ({missing}): {install('so-clip[methods]')}."
        )
    optimizer: torch.optim.Optimizer = SavedGaLore(
        params,
        lr=lr,
        betas=(betas[0], betas[1]),
        eps=eps,
        weight_decay=weight_decay,
        rank=rank,
        update_proj_gap=update_proj_gap,
        scale=scale,
        projection_type=projection_type,
    )
    return optimizer


class SavedGaLore(GaLore):
    """A GaLore that projects convolutions too, and whose state is saved without pickled objects.

    A saved projector is its matrices and its last step. Loading builds the projector from these and
    from the group's options.
    """

    def step(self, closure: Any = None) -> Any:
        """Take a step; see torch.optim.Optimizer."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        params = [param for group in self.param_groups for param in group["params"]]
        # GaLore projects what has two dimensions.
        with _as_matrices([param for param in params if param.ndim > 2]):
            super().step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the state; see torch.optim.Optimizer."""
        saved = super().state_dict()
        states = {
            key: {**state, _KEY: _unpacked(state[_KEY])} if _KEY in state else state
            for key, state in saved["state"].items()
        }
        return {**saved, "state": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; see torch.optim.Optimizer."""
        states = {
            key: {name: value for name, value in state.items() if name != _KEY}
            for key, state in state_dict["state"].items()
        }
        super().load_state_dict({**state_dict, "state": states})
        for group, saved_group in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for param, key in zip(group["params"], saved_group["params"], strict=True):
                held = state_dict["state"].get(key, {}).get(_KEY)
                if held is not None:
                    projector = GaLoreProjector(**{name: group[name] for name in _OPTIONS})
                    matrices = tuple(
                        matrix.to(param.device, param.dtype) for matrix in held["matrices"]
                    )
                    projector.ortho_matrix = matrices if len(matrices) > 1 else matrices[0]
                    projector.last_svd_step = held["last_svd_step"]
                    self.state[param][_KEY] = projector


@contextmanager
def _as_matrices(params: Iterable[Tensor]) -> Iterator[None]:
    """Give parameters and their gradients two dimensions in this context."""
    before = [(param, param.shape, param.grad) for param in params if param.grad is not None]
    try:
        for param, _, grad in before:
            assert grad is not None
            param.grad = None  # torch checks its shape
            param.data = param.data.flatten(1)
            param.grad = grad.flatten(1)
        yield
    finally:
        for param, shape, grad in before:
            param.grad = None
            param.data = param.data.reshape(shape)
            param.grad = grad


def _unpacked(projector: Any) -> dict[str, Any]:
    held = projector.ortho_matrix
    matrices = [held] if isinstance(held, Tensor) else [*held]
    return {"matrices": matrices, "last_svd_step": projector.last_svd_step}
