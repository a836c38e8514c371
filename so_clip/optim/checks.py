"""What an optimizer refuses: settings out of range, and tensors it cannot train."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch

from so_clip.errors import InputError, nearest

CHOICES: dict[str, tuple[str, ...]] = {
    "order": ("prune_first", "update_first"),
    "bias_correction": ("step", "age"),
    "gradient_selection": ("random", "importance", "dense"),
    "moment_selection": ("importance", "random", "dense", "none"),
}
FLAGS: dict[str, tuple[bool | None, ...]] = {
    "foreach": (None, True, False),
    "maximize": (True, False),
}
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_seed(seed: Any) -> None:
    """Raise InputError unless `seed` is a whole number from 0 to 2^63 - 1."""
    if not _is_whole(seed) or not 0 <= seed < 2**63:
        raise InputError(f"seed={seed!r}: must be a whole number from 0 to 2^63 - 1.")


def check_group(group: dict[str, Any]) -> None:
    """Raise InputError, naming value and range, unless SO can train this parameter group."""
    for name in ("lr", "eps", "weight_decay"):
        if not _is_real(group[name]) or not 0 <= group[name] < math.inf:
            raise InputError(f"{name}={group[name]!r}: must be a finite number, at least 0.")
    betas = group["betas"]
    if (
        not isinstance(betas, Sequence)
        or len(betas) != 2
        or not all(_is_real(beta) and 0 <= beta < 1 for beta in betas)
    ):
        raise InputError(f"betas={betas!r}: must be two numbers in [0, 1), such as (0.9, 0.999).")
    ratio = group["density_ratio"]
    if not _is_real(ratio) or not 0 < ratio <= 1:
        raise InputError(
            f"density_ratio={ratio!r}: must be a number in (0, 1]. It is the fraction of entries "
            "kept (the paper's kappa, 5e-4); the sparsity is 1 minus it."
        )
    if not _is_whole(group["T"]) or group["T"] < 0:
        raise InputError(
            f"T={group['T']!r}: must be a whole number of steps, at least 0 (0: draw only once)."
        )
    for name, choices in CHOICES.items():
        if group[name] not in choices:
            hint = nearest(group[name], choices)
            raise InputError(f"{name}={group[name]!r}: must be one of {', '.join(choices)}.{hint}")
    for name, flags in FLAGS.items():
        if not any(group[name] is flag for flag in flags):
            raise InputError(
                f"{name}={group[name]!r}: must be one of {', '.join(map(str, flags))}."
            )
    _check_tensors(group["params"])


def _check_tensors(params: list[torch.Tensor]) -> None:
    for param in params:
        if param.layout != torch.strided or param.dtype not in DTYPES:
            raise InputError(
                f"a tensor of shape {tuple(param.shape)} is {param.layout} and {param.dtype}: SO "
                f"trains strided tensors of {', '.join(map(str, DTYPES))}."
            )


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
