"""An optimizer's options as a configuration gives them, checked without torch."""

from typing import Any

from so_clip.checks import number, one_of, whole
from so_clip.errors import InputError

AUTO = "auto"
# The values of SO's named settings.
CHOICES: dict[str, tuple[str, ...]] = {
    "order": ("prune_first", "update_first"),
    "bias_correction": ("step", "age"),
    "gradient_selection": ("random", "importance", "dense"),
    "moment_selection": ("importance", "random", "dense", "none"),
}


def checked_options(values: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's options, those that are known here in their own types.

    What every optimizer has in common is checked and, where they are given, SO's kappa and T.

    Raises:
        InputError: naming the option, its value, and the values it may take.
    """
    checked = dict(values)
    checked["lr"] = number("optimizer.lr", values["lr"])
    if checked["lr"] <= 0:
        raise InputError(f"optimizer.lr={values['lr']}: must be above 0; the papers use 2e-4.")
    if "density_ratio" in values:
        density_ratio = number("optimizer.density_ratio", values["density_ratio"])
        if not 0 < density_ratio <= 1:
            raise InputError(
                f"optimizer.density_ratio={values['density_ratio']}: must lie in (0, 1]. It is the "
                "fraction of entries kept (the paper's kappa, 5e-4); the sparsity is 1 minus it."
            )
        checked["density_ratio"] = density_ratio
    if "T" in values:
        checked["T"] = whole("optimizer.T", values["T"], 0)
    _check_adams(values)
    for key, allowed in CHOICES.items():
        if key in values:
            checked[key] = one_of(f"optimizer.{key}", values[key], allowed)
    sampled = values.get("sampled_gradients", AUTO)
    if sampled != AUTO and not isinstance(sampled, bool):
        raise InputError(f"optimizer.sampled_gradients={sampled}: must be auto, true or false.")
    return checked


def check_steps(method: str, lr: float, lr_min: float, max_steps: int) -> None:
    """Check that there are steps to train for, and that the rate falls over them, if it changes.

    Raises:
        InputError: naming the option.
    """
    if max_steps < 1:
        raise InputError(
            f"schedule.max_steps={max_steps}: method={method} needs at least one step; "
            "method=zero_shot evaluates without training."
        )
    if lr_min > lr:
        raise InputError(
            f"schedule.lr_min={lr_min}: is above optimizer.lr={lr}, so that the rate would rise to "
            "it. Lower it, such as to 0."
        )


def _check_adams(values: dict[str, Any]) -> None:
    """Check what SO and torch's Adams share; torch would let some of it pass, or fail obscurely."""
    for key in ("eps", "weight_decay"):
        if key in values and number(f"optimizer.{key}", values[key]) < 0:
            raise InputError(f"optimizer.{key}={values[key]}: must be 0 or above.")
    betas = values.get("betas", [0, 0])
    if (
        not isinstance(betas, list)
        or len(betas) != 2
        or not all(0 <= number("optimizer.betas", beta) < 1 for beta in betas)
    ):
        raise InputError(
            f"optimizer.betas={betas}: must be two numbers in [0, 1), such as [0.9,0.999]."
        )
    for key in ("amsgrad", "foreach", "fused", "maximize", "capturable", "differentiable"):
        if not isinstance(values.get(key, False), (bool, type(None))):
            raise InputError(f"optimizer.{key}={values[key]}: must be true or false.")
    if values.get("differentiable"):
        raise InputError(
            "optimizer.differentiable=true: a step would have to be part of a graph, and weights "
            "that are trained cannot be. Leave it out."
        )
