"""What an optimizer refuses: settings out of range, and tensors it cannot train."""

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch

from so_clip.errors import InputError, nearest
from so_clip.optim.options import CHOICES

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
    if "seed" in group:
        raise InputError(
            f"seed={group['seed']!r} in a parameter group: all share one. Give it to SO itself."
        )
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


def check_saved(saved: Any, groups: list[dict[str, Any]], options: Iterable[str]) -> None:
    """Raise InputError unless `saved` is a state of SO that fits the tensors of these groups.

    How many groups and tensors there must be, torch checks. All else it would take as it comes, to
    fail at some later step or, worse, to move the wrong entries.
    """
    if not isinstance(saved, Mapping) or "generator" not in saved:
        raise InputError("this optimizer state has no 'generator': it was not saved by SO.")
    try:
        torch.Generator().set_state(saved["generator"].cpu())
    except (AttributeError, RuntimeError, TypeError) as error:
        raise InputError(
            f"this optimizer state's 'generator' is damaged ({error}): load another."
        ) from error
    for key in ("state", "param_groups"):
        if key not in saved:
            raise InputError(f"this optimizer state has no {key!r}: it was not saved by SO.")
    for saved_group, group in zip(saved["param_groups"], groups, strict=False):
        for option in options:
            if option not in saved_group:
                raise InputError(
                    f"this optimizer state has a group without {option!r}: it was not saved by SO."
                )
        check_group({**saved_group, "params": []})
        for key, param in zip(saved_group["params"], group["params"], strict=False):
            if key in saved["state"] and not _fits(saved["state"][key], param):
                raise InputError(
                    f"this optimizer state does not fit a tensor of shape {tuple(param.shape)}, "
                    f"its number {key}: it was saved of another model, or is damaged."
                )


def _fits(state: Any, param: torch.Tensor) -> bool:
    """Return whether a saved state (see so_clip.optim.state) can be this tensor's."""
    if not isinstance(state, Mapping):
        return False
    if not state:  # of a tensor that has not been stepped yet
        return True
    step: Any = state.get("step")
    size: Any = state.get("size")
    numel = param.numel()
    if not _is_whole(step) or step < 0 or not _is_whole(size) or not min(1, numel) <= size <= numel:
        return False
    moments = torch.Size([size]) if "index" in state else param.shape
    shapes = dict.fromkeys(("support", "index", "place", "age"), torch.Size([size]))
    shapes |= dict.fromkeys(("exp_avg", "exp_avg_sq"), moments)
    # A place may also be the one past the support's last: nowhere.
    ends = {"support": numel, "index": numel, "place": size + 1}
    for key, shape in shapes.items():
        value = state.get(key)
        if value is None and (key not in state or key == "support"):
            continue
        if not isinstance(value, torch.Tensor) or value.shape != shape:
            return False
        end = ends.get(key)
        if end is not None and (value.dtype != torch.int64 or not _inside(value, end)):
            return False
    return ("exp_avg" in state) == ("exp_avg_sq" in state)


def _inside(index: torch.Tensor, end: int) -> bool:
    return not len(index) or bool(index.min() >= 0 and index.max() < end)


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
