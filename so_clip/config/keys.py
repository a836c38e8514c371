"""Whether a composed configuration has the options that a run reads, and no others."""

from collections.abc import Mapping, Sequence
from typing import Any

from so_clip.config.user_data import USER_KEYS
from so_clip.errors import InputError, nearest


def check_keys(
    values: Mapping[str, Any], groups: Mapping[str, Sequence[str]], top: Sequence[str]
) -> None:
    """Refuse options that `~` took away and those that `+` added and nothing would read.

    Args:
        values: the configuration.
        groups: the options of each group. `adapter` and `optimizer` may have more.
        top: the options beside the groups, and the groups.

    Raises:
        InputError: naming the first of them.
    """
    _check_group("", values, top)
    for group, keys in groups.items():
        if not isinstance(values[group], dict):
            raise InputError(f"{group}={values[group]}: must hold the options {', '.join(keys)}.")
        if group == "dataset":
            keys = _of_dataset(values[group], keys)
        _check_group(f"{group}.", values[group], keys, extra=group in ("adapter", "optimizer"))
    for key in values["adapter"]:
        if str(key).startswith("_") and key != "_target_":
            raise InputError(f"adapter.{key}: there is no such option. Leave it out.")
    if values["optimizer"]["_target_"] is not None and "lr" not in values["optimizer"]:
        raise InputError("optimizer.lr is missing; every optimizer needs a rate. Leave out the ~.")


def _of_dataset(values: Mapping[str, Any], keys: Sequence[str]) -> Sequence[str]:
    """Return the options of a published dataset, `keys`, or those of one's own images."""
    return USER_KEYS.get(str(values["layout"]), keys) if "layout" in values else keys


def _check_group(
    prefix: str, values: Mapping[str, Any], keys: Sequence[str], extra: bool = False
) -> None:
    for key in keys:
        if key not in values:
            raise InputError(f"{prefix}{key} is missing. Give it, or leave out the ~.")
    for key in values:
        if not extra and key not in keys:
            raise InputError(f"{prefix}{key}: there is no such option.{nearest(key, keys)}")
