"""Checks of SO's own inputs: settings of its groups, tensors to train, and saved states."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from so_clip.errors import InputError
from so_clip.optim.options import check_ranges, is_whole

FLAGS: dict[str, tuple[bool | None, ...]] = {
    "foreach": (None, True, False),
    "maximize": (True, False),
}
# Options that are missing in older saved states, and their values there.
LATER_OPTIONS: dict[str, Any] = {"least_entries": 1}
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_seed(seed: Any) -> None:
    """Raise InputError unless `seed` is a whole number from 0 to 2^63 - 1."""
    if not is_whole(seed) or not 0 <= seed < 2**63:
        raise InputError(f"seed={seed!r}: must be a whole number from 0 to 2^63 - 1.")


def check_group(group: dict[str, Any]) -> None:
    """Raise InputError unless SO can train this parameter group."""
    if "seed" in group:
        raise InputError(
            f"seed={group['seed']!r} in a parameter group: all groups share one seed. Give it to "
            "SO itself."
        )
    check_ranges(group)
    for name, flags in FLAGS.items():
        if not any(group[name] is flag for flag in flags):
            raise InputError(
                f"{name}={group[name]!r}: must be one of {', '.join(map(str, flags))}."
            )
    for param in group["params"]:
        if hasattr(param, "full_tensor"):
            raise InputError(
                f"a tensor of shape {tuple(param.shape)} is split over processes (a DTensor, made "
                "by fully_shard or tensor parallelism): SO trains whole tensors. Use "
                "DistributedDataParallel."
            )
        if param.layout != torch.strided or param.dtype not in DTYPES:
            raise InputError(
                f"a tensor of shape {tuple(param.shape)} is {param.layout} and {param.dtype}: SO "
                f"trains strided tensors of {', '.join(map(str, DTYPES))}."
            )


def check_saved(saved: Any, groups: list[dict[str, Any]], options: Iterable[str]) -> None:
    """Raise InputError unless `saved` is a state of SO that fits the tensors of these groups.

    torch checks the number of groups and tensors. It would accept any other mismatch, which would
    fail in a later step or, worse, move the wrong entries.
    """
    if not isinstance(saved, Mapping) or "generator" not in saved:
        raise InputError("this optimizer state has no 'generator': SO did not save it.")
    try:
        torch.Generator().set_state(saved["generator"].cpu())
    except (AttributeError, RuntimeError, TypeError) as error:
        raise InputError(
            f"this optimizer state's 'generator' is damaged ({error}): load another state."
        ) from error
    for key in ("state", "param_groups"):
        if key not in saved:
            raise InputError(f"this optimizer state has no {key!r}: SO did not save it.")
    for saved_group, group in zip(saved["param_groups"], groups, strict=False):
        for option in options:
            if option not in saved_group and option not in LATER_OPTIONS:
                raise InputError(
                    f"this optimizer state has a group without {option!r}: SO did not save it."
                )
        check_group({**saved_group, "params": []})
        for key, param in zip(saved_group["params"], group["params"], strict=False):
            if key in saved["state"] and not _fits(
                saved["state"][key], param, saved_group.get("least_entries", 1)
            ):
                raise InputError(
                    f"this optimizer state does not fit tensor {key}, of shape "
                    f"{tuple(param.shape)}: it belongs to another model, or is damaged."
                )


def _fits(state: Any, param: torch.Tensor, least: int) -> bool:
    """Return whether a saved state (see so_clip.optim.state) can belong to this tensor."""
    if not isinstance(state, Mapping):
        return False
    if not state:  # the tensor has not been stepped yet
        return True
    step: Any = state.get("step")
    size: Any = state.get("size")
    numel = param.numel()
    if (
        not is_whole(step)
        or step < 0
        or not is_whole(size)
        or not min(1, least, numel) <= size <= numel
    ):
        return False
    moments = torch.Size([size]) if "index" in state else param.shape
    shapes = dict.fromkeys(("support", "index", "place", "age"), torch.Size([size]))
    shapes |= dict.fromkeys(("exp_avg", "exp_avg_sq"), moments)
    # Place M means "not in the support", so M itself is valid.
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
