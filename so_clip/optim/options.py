"""Checks of optimizer options without torch, for the configuration and for SO's constructor."""

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from so_clip.checks import number, one_of
from so_clip.errors import InputError

AUTO = "auto"
# A step divides rates by small numbers. The quotient must fit into float32.
_MOST = 1e30
CHOICES: dict[str, tuple[str, ...]] = {
    "order": ("prune_first", "update_first"),
    "bias_correction": ("step", "age", "twice"),
    "gradient_selection": ("random", "importance", "dense"),
    "moment_selection": ("importance", "random", "dense", "none"),
}


def checked_options(values: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's options from a configuration, the known ones in their own types.

    Raises:
        InputError: an option is out of range; the message names it, its value and the valid ones.
    """
    checked = dict(values)
    checked["lr"] = number("optimizer.lr", values["lr"])
    if checked["lr"] <= 0:
        raise InputError(f"optimizer.lr={values['lr']}: must be above 0; the papers use 2e-4.")
    # torch would accept some of these values, or fail with an obscure message.
    check_ranges(values, "optimizer.")
    if "density_ratio" in values:
        checked["density_ratio"] = float(values["density_ratio"])
    for key in ("amsgrad", "foreach", "fused", "maximize", "capturable", "differentiable"):
        if not isinstance(values.get(key, False), (bool, type(None))):
            raise InputError(f"optimizer.{key}={values[key]}: must be true or false.")
    if values.get("differentiable"):
        raise InputError(
            "optimizer.differentiable=true: makes each step part of a graph, and trained weights "
            "cannot be part of one. Leave the option out."
        )
    sampled = values.get("sampled_gradients", AUTO)
    if sampled != AUTO and not isinstance(sampled, bool):
        raise InputError(f"optimizer.sampled_gradients={sampled}: must be auto, true or false.")
    return checked


def check_steps(method: str, lr: float, lr_min: float, max_steps: int) -> None:
    """Raise InputError unless there is at least one step and the learning rate does not rise."""
    if max_steps < 1:
        raise InputError(
            f"schedule.max_steps={max_steps}: method={method} needs at least one step; "
            "method=zero_shot evaluates without training."
        )
    if lr_min > lr:
        raise InputError(
            f"schedule.lr_min={lr_min}: is above optimizer.lr={lr}, so the learning rate would "
            "rise. Lower lr_min, for example to 0."
        )


def check_ranges(options: Mapping[str, Any], prefix: str = "") -> None:
    """Raise InputError if an option of SO or of torch's Adams is out of range.

    Args:
        options: values by name; options that are missing are not checked.
        prefix: the text before each name in messages, such as "optimizer." for a configuration.
    """
    shown = str if prefix else repr

    def refuse_unless(name: str, is_valid: bool, requirement: str) -> None:
        if not is_valid:
            raise InputError(f"{prefix}{name}={shown(options[name])}: must be {requirement}")

    for name in ("lr", "eps", "weight_decay"):
        value = options.get(name, 0)
        is_valid = is_real(value) and 0 <= value <= _MOST
        refuse_unless(name, is_valid, f"a finite number, at least 0, and at most {_MOST:g}.")
    betas = options.get("betas", (0, 0))
    pair = isinstance(betas, Sequence) and len(betas) == 2
    is_valid = pair and all(is_real(beta) and 0 <= beta < 1 for beta in betas)
    refuse_unless("betas", is_valid, "two numbers in [0, 1), such as [0.9,0.999].")
    ratio = options.get("density_ratio", 1)
    refuse_unless(
        "density_ratio",
        is_real(ratio) and 0 < ratio <= 1,
        "a number in (0, 1]. It is the fraction of entries kept (the paper's kappa, 5e-4); the "
        "sparsity is 1 minus it.",
    )
    steps = options.get("T", 0)
    is_valid = is_whole(steps) and steps >= 0
    refuse_unless("T", is_valid, "a whole number of steps, at least 0 (0: draw only once).")
    entries = options.get("least_entries", 0)
    is_valid = is_whole(entries) and entries >= 0
    refuse_unless(
        "least_entries",
        is_valid,
        "a whole number of entries, at least 0 (0: the smallest tensors are not trained).",
    )
    for name, allowed in CHOICES.items():
        if name in options:
            one_of(f"{prefix}{name}", options[name], allowed)


def is_real(value: Any) -> bool:
    """Return whether a value is a real number, Python's or NumPy's, and no bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number, Python's or NumPy's, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)
