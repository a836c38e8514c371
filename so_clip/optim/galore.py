"""GaLore, by pytorch-optimizer: AdamW on gradients projected to low rank."""

from collections.abc import Iterable

import torch
from torch import Tensor

from so_clip.errors import InputError

PROJECTIONS = ("std", "reverse_std", "right", "left", "full")


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
    """Return a GaLore over tensors, of which those that are no matrices stay dense.

    Args:
        rank: of the projected gradients, 1 or more.
        update_proj_gap: steps between two projections, 1 or more.
        scale: of the projected update.
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
    try:
        from so_clip.optim.saved_galore import SavedGaLore
    except ImportError as error:
        raise InputError(
            f"optimizer=galore needs pytorch-optimizer ({error}): pip install 'so-clip[methods]'."
        ) from error
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
