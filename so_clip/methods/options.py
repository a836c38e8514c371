"""Checks of adapter options. Each returns the value, or raises an InputError that names it.

`name` is the option's name without "adapter.".
"""

from typing import Any

from so_clip import checks
from so_clip.errors import InputError

MAX_SEED = 2**63 - 1


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return a whole number from `least` to `most`."""
    return checks.whole(f"adapter.{name}", value, least, most)


def seed(value: Any) -> int:
    """Return the option `seed`, which torch's generators must accept."""
    return whole("seed", value, 0, MAX_SEED)


def number(name: str, value: Any) -> float:
    """Return a finite number."""
    return checks.number(f"adapter.{name}", value)


def flag(name: str, value: Any) -> bool:
    """Return true or false."""
    return checks.flag(f"adapter.{name}", value)


def above_zero(name: str, value: Any) -> float:
    """Return a finite number above 0."""
    return _check(name, value, number(name, value) > 0, "must be above 0.")


def zero_or_above(name: str, value: Any) -> float:
    """Return a finite number of 0 or above."""
    return _check(name, value, number(name, value) >= 0, "must be 0 or above.")


def share_below_one(name: str, value: Any) -> float:
    """Return a number in [0, 1)."""
    return _check(name, value, 0 <= number(name, value) < 1, "must be in [0, 1).")


def inner_share(name: str, value: Any) -> float:
    """Return a number between 0 and 1, both excluded."""
    return _check(name, value, 0 < number(name, value) < 1, "must lie between 0 and 1.")


def density(value: Any) -> float:
    """Return the option `density_ratio`, the fraction of the matrices' entries that is trained."""
    inside = 0 < number("density_ratio", value) <= 1
    return _check("density_ratio", value, inside, "must be in (0, 1]; SO's paper has 5e-4.")


def interpolation(value: Any) -> float:
    """Return the option `interpolation`, the share of the adapted weights that is kept."""
    inside = 0 <= number("interpolation", value) <= 1
    return _check("interpolation", value, inside, "must be in [0, 1]; 1 keeps all.")


def _check(name: str, value: Any, valid: bool, problem: str) -> float:
    if not valid:
        raise InputError(f"adapter.{name}={value}: {problem}")
    return float(value)
