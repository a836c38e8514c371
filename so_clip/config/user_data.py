"""The options of the group `dataset`: a published dataset, or the user's own images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationInfo, field_validator

from so_clip.checks import (
    OptionalPathOption,
    Options,
    number,
    one_of,
    option,
    option_key,
    path,
    unicode_text,
    validated,
)
from so_clip.data.cards.card import USER_LAYOUTS
from so_clip.data.choice import MAX_SEED
from so_clip.data.user.dataset import UserData, check_name, user_name
from so_clip.errors import InputError


class PublishedDataset(Options):
    """A dataset with a card."""

    name: str
    split_file: OptionalPathOption = option(
        None, "read this split file instead of the dataset's own"
    )


class UserDataset(Options):
    """The user's own images: the options that dataset=folder and dataset=csv share."""

    layout: str
    name: str | None
    folder: OptionalPathOption
    split_shares: tuple[float, float, float]
    split_seed: int = option(ge=0, le=MAX_SEED)
    class_names: OptionalPathOption
    follow_links: bool

    @field_validator("name", mode="before")
    @classmethod
    def _check_name(cls, value: Any, info: ValidationInfo) -> str | None:
        return None if value is None else check_name(unicode_text(option_key(info), str(value)))

    @field_validator("split_shares", mode="before")
    @classmethod
    def _check_shares(cls, value: Any, info: ValidationInfo) -> tuple[float, ...]:
        key = option_key(info)
        if not isinstance(value, (list, tuple)) or len(value) != 3:
            raise InputError(
                f"{key}={value}: must be three numbers, for train, val and test, such as "
                "[0.5,0.2,0.3]."
            )
        shares = tuple(number(key, share) for share in value)
        if min(shares) < 0 or not shares[0] or not shares[2] or abs(sum(shares) - 1) > 1e-6:
            raise InputError(
                f"{key}={value}: must add up to 1, with something for train and for test, such "
                "as [0.5,0.2,0.3]."
            )
        return shares


class FolderDataset(UserDataset):
    """dataset=folder: a folder for each class."""

    split: Literal["auto", "folders", "drawn"]
    train_folder: tuple[str, ...]
    val_folder: tuple[str, ...]
    test_folder: tuple[str, ...]

    @field_validator("train_folder", "val_folder", "test_folder", mode="before")
    @classmethod
    def _check_folders(cls, value: Any, info: ValidationInfo) -> tuple[str, ...]:
        key = option_key(info)
        names = [] if value is None else value if isinstance(value, (list, tuple)) else [value]
        return tuple(str(path(key, name)) for name in names)


class CsvDataset(UserDataset):
    """dataset=csv: a list of images, labels and splits."""

    csv_file: OptionalPathOption
    split: Literal["auto", "drawn"]
    path_column: str | None
    label_column: str | None
    split_column: str | None

    @field_validator("path_column", "label_column", "split_column", mode="before")
    @classmethod
    def _check_column(cls, value: Any, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        if str(value).strip() and not isinstance(value, (list, dict)):
            return unicode_text(option_key(info), str(value))
        raise InputError(f"{option_key(info)}={value}: must be the name of a column.")


class ChosenDataset(NamedTuple):
    """The part of a DataChoice that the group `dataset` decides."""

    dataset: str
    user_data: UserData | None
    split_file: Path | None


def dataset_choice(values: Any, data_root: Path) -> ChosenDataset:
    """Return the dataset that the options of the group `dataset` choose.

    Args:
        values: the options of the group `dataset`.
        data_root: where the user's own images are unless dataset.folder names another place.

    Raises:
        InputError: an option whose value cannot be used.
    """
    if not isinstance(values, Mapping) or "layout" not in values:
        published = validated(PublishedDataset, values, "dataset.")
        return ChosenDataset(published.name, None, published.split_file)
    layout = one_of("dataset.layout", values["layout"], USER_LAYOUTS)
    options = FolderDataset if layout == "folder" else CsvDataset
    chosen = validated(options, values, "dataset.")
    folder = chosen.folder or data_root
    found = {**chosen.model_dump(exclude={"name"}), "folder": folder}
    name = chosen.name or user_name(layout, folder)
    return ChosenDataset(name, UserData(**found), None)
