"""The options of dataset=folder and dataset=csv, checked, and their values in plain types."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from so_clip.checks import flag, number, one_of, optional_path, unicode_text, whole
from so_clip.data.cards.card import USER_LAYOUTS
from so_clip.data.user.dataset import UserData, check_name, user_name
from so_clip.data.user.folder import SPLIT_CHOICES
from so_clip.errors import InputError

_BOTH = ("layout", "name", "folder", "split_shares", "split_seed", "class_names")
USER_KEYS = {"folder": (*_BOTH, "split", "follow_links"), "csv": (*_BOTH, "csv_file")}
# What its key in the hash that draws the split has room for.
_MAX_SEED = 2**63 - 1


def user_data(values: Mapping[str, Any], data_root: Path) -> tuple[str, UserData | None]:
    """Return a dataset's name, and how it is found if it is one's own images.

    Args:
        values: the options of the group `dataset`.
        data_root: where the images are unless dataset.folder says another place.

    Raises:
        InputError: an option whose value cannot be used.
    """
    if "layout" not in values:
        return values["name"], None
    layout = one_of("dataset.layout", values["layout"], USER_LAYOUTS)
    folder = optional_path("dataset.folder", values["folder"]) or data_root
    name = values["name"]
    if name is not None:
        name = check_name(unicode_text("dataset.name", str(name)))
    return name or user_name(layout, folder), UserData(
        layout=layout,
        folder=folder,
        csv_file=optional_path("dataset.csv_file", values.get("csv_file")),
        split=one_of("dataset.split", values.get("split", "auto"), SPLIT_CHOICES),
        split_shares=_shares(values["split_shares"]),
        split_seed=whole("dataset.split_seed", values["split_seed"], 0, _MAX_SEED),
        class_names=optional_path("dataset.class_names", values["class_names"]),
        follow_links=flag("dataset.follow_links", values.get("follow_links", False)),
    )


def _shares(given: Any) -> tuple[float, ...]:
    if not isinstance(given, list) or len(given) != 3:
        raise InputError(
            f"dataset.split_shares={given}: must be three numbers, for train, val and test, such "
            "as [0.5,0.2,0.3]."
        )
    shares = tuple(number("dataset.split_shares", share) for share in given)
    if min(shares) < 0 or not shares[0] or not shares[2] or abs(sum(shares) - 1) > 1e-6:
        raise InputError(
            f"dataset.split_shares={given}: must add up to 1, with something for train and for "
            "test, such as [0.5,0.2,0.3]."
        )
    return shares
