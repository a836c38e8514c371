"""A user's own images as a dataset: a card and lists, made from the files in a folder."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from so_clip.data.cards.card import USER_LAYOUTS, DatasetCard, card_names
from so_clip.data.examples import SPLITS, Example, Splits
from so_clip.data.unicode_names import composed
from so_clip.data.user.class_names import Names, class_names, in_order, number_of
from so_clip.data.user.csv_list import COLUMNS, CsvOptions, find_csv, list_csv
from so_clip.data.user.folder import list_folder
from so_clip.data.user.listing import Listed, Listing, draw_split
from so_clip.errors import InputError

SHARES = (0.5, 0.2, 0.3)
_TEMPLATE = "a photo of a {}."
# It is part of the name of a run folder, and most file systems allow 255 bytes.
_MAX_NAME_BYTES = 64


@dataclass(frozen=True)
class UserData:
    """The options of dataset=folder and dataset=csv.

    Attributes:
        layout: "folder" or "csv".
        folder: the folder of the images.
        csv_file: the list, if it is not the only CSV file in `folder`.
        split: "auto", "folders" or "drawn"; see list_folder.
        split_shares, split_seed: see draw_split.
        class_names: a file of readable names; see class_names.
        follow_links: follow links to places outside `folder`.
        train_folder, val_folder, test_folder: folders of each split; see list_folder.
        path_column, label_column, split_column: names of columns in the list.
    """

    layout: str
    folder: Path
    csv_file: Path | None = None
    split: str = "auto"
    split_shares: tuple[float, ...] = SHARES
    split_seed: int = 1
    class_names: Path | None = None
    follow_links: bool = False
    train_folder: tuple[str, ...] = ()
    val_folder: tuple[str, ...] = ()
    test_folder: tuple[str, ...] = ()
    path_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any] | None) -> "UserData | None":
        """Return the options in a run's recorded settings."""
        return None if values is None else TypeAdapter(cls).validate_python(values)


def user_name(layout: str, folder: Path) -> str:
    """Return the name of a user's dataset in tables and run folders: the name of its folder.

    Letters, digits, - and _ are kept. The layout is added to the name of a published dataset.
    """
    # Path.absolute keeps "..", and that has no name.
    last = composed(os.path.basename(os.path.abspath(folder)))  # noqa: PTH100, PTH119
    name = re.sub(r"[^\w-]+", "-", last).strip("-_")
    while len(name.encode()) > _MAX_NAME_BYTES:
        name = name[:-1]
    name = name or layout
    return f"{name}-{layout}" if name in card_names() else name


def check_name(name: str) -> str:
    """Return the name if a user's dataset may have it.

    Raises:
        InputError: it is the name of a published dataset, or cannot be part of a folder's name.
    """
    if not re.fullmatch(r"[\w-]+", name) or len(name.encode()) > _MAX_NAME_BYTES:
        raise InputError(
            f"dataset.name={name}: must consist of letters, digits, _ and -, at most "
            f"{_MAX_NAME_BYTES} bytes."
        )
    if name in card_names():
        raise InputError(
            f"dataset.name={name}: is the name of a published dataset. Choose another."
        )
    return name


def read_user_data(user: UserData, name: str) -> tuple[DatasetCard, Splits, Listing]:
    """List a user's own images, and draw a split if they have none.

    Labels follow the order of the class keys; see in_order. Lists are sorted by class and path.

    Args:
        user: the options.
        name: the name of the dataset.

    Raises:
        InputError: no such folder, an empty folder, fewer than two classes, a class without
            images, or no images for training or testing. The message names it and the way out.
    """
    listing = _listed(user)
    keys = in_order(listing.keys)
    _refuse_equal_numbers(listing.file, keys)
    _check_classes(listing, keys, user)
    names = class_names(keys, user.class_names, listing.file)
    if user.class_names is not None:
        listing.read_from.append(user.class_names)
    _note_names(keys, names, user, listing)
    images = listing.images
    if images[0].split is None:
        _check_counts(listing)
        images = draw_split(images, user.split_shares, user.split_seed)
    labels = {key: label for label, key in enumerate(keys)}
    images = sorted(images, key=lambda image: (labels[image.key], composed(image.path)))
    splits = _splits(images, labels, names, listing, name)
    for split in ("train", "test"):
        if not splits.sizes[split]:
            way = " Or draw a split: dataset.split=drawn." if user.layout == "csv" else ""
            raise InputError(f"{listing.file}: no image is in {split}. Add images.{way}")
    card = DatasetCard(
        name=name,
        title=name,
        layout=user.layout,
        folder="",
        image_dir="",
        sizes=splits.sizes,
        templates={"plain": _TEMPLATE},
        licence="your own",
        homepage="none",
        citation="none",
        class_names=tuple(names),
        class_folders=tuple(keys),
    )
    return card, splits, listing


def _listed(user: UserData) -> Listing:
    assert user.layout in USER_LAYOUTS
    if not os.path.isdir(user.folder):  # noqa: PTH112 - Path.is_dir raises below a locked folder
        raise InputError(
            f"{user.folder}: there is no such folder. Give the folder of your images with "
            "data_root=FOLDER."
        )
    if user.layout == "csv":
        columns = {name: getattr(user, f"{name}_column") for name in COLUMNS}
        options = CsvOptions(columns, user.split == "drawn", user.follow_links)
        return list_csv(find_csv(user.folder, user.csv_file), user.folder, options)
    folders = {split: getattr(user, f"{split}_folder") for split in SPLITS}
    return list_folder(user.folder, user.split, user.follow_links, folders)


def _check_classes(listing: Listing, keys: Sequence[str], user: UserData) -> None:
    counts = Counter(image.key for image in listing.images)
    if user.layout == "folder" and len(keys) == 1 and counts[keys[0]]:
        _check_one_folder(listing, keys[0], user)
    for key in keys:
        if not counts[key]:
            raise InputError(
                f"{user.folder}: the class {key!r} has no image. Add images, or remove its folder."
            )
    if len(keys) < 2:
        found = f"one class, {keys[0]!r}" if keys else "no images"
        raise InputError(
            f"{listing.file}: holds {found}. A classifier needs two or more classes: add images "
            "of another class."
        )


def _refuse_equal_numbers(place: Path, keys: Sequence[str]) -> None:
    """Refuse classes such as 1 and 1.0: programs write one class in both ways."""
    seen: dict[Decimal, str] = {}
    for key in keys:
        value = number_of(key)
        # 1.1 and 1.10 may be two sections of a catalogue.
        if value is None or value != value.to_integral_value():
            continue
        first = seen.setdefault(value, key)
        if first != key:
            raise InputError(
                f"{place}: the classes {first!r} and {key!r} are the same number. Write the label "
                "of this class in one way."
            )


def _check_counts(listing: Listing) -> None:
    """Refuse to draw a split from one image per class: nothing would be left to test on."""
    counts = Counter(image.key for image in listing.images)
    if max(counts.values()) < 2:
        raise InputError(
            f"{listing.file}: each of {len(counts)} classes has one image, so a drawn split has "
            "no image to test on. A class needs two images, one to train on and one to test on. "
            "Add images."
        )


def _check_one_folder(listing: Listing, key: str, user: UserData) -> None:
    """Refuse a folder if the user probably meant the folder inside it."""
    inner = {image.path.split("/")[1] for image in listing.images if image.path.count("/") > 1}
    if len(inner) > 1:
        raise InputError(
            f"{user.folder}: holds one class, {key!r}, with the folders "
            f"{', '.join(sorted(inner)[:3])} in it. If these are the classes, give "
            f"data_root={user.folder / key}."
        )


def _splits(
    images: Sequence[Listed],
    labels: dict[str, int],
    names: list[str],
    listing: Listing,
    dataset: str,
) -> Splits:
    lists: dict[str, list[Example]] = {split: [] for split in SPLITS}
    total = hashlib.sha256()
    for path, key, split in images:
        assert split is not None, "read_user_data draws missing splits"
        lists[split].append(Example(path, labels[key]))
        # One form of Unicode, so that a copy on another system has the same hash.
        total.update(json.dumps([composed(path), key, split]).encode())
    if not lists["val"]:
        listing.notes.append("there are no validation images, so confidences are not calibrated")
    untested = len(names) - len({example.label for example in lists["test"]})
    if untested:
        listing.notes.append(f"{untested} of {len(names)} classes have no test image")
    return Splits.of(
        lists,
        class_names=names,
        file=listing.file,
        sha256=total.hexdigest(),
        dataset=dataset,
        read_from=tuple(listing.read_from),
    )


def _note_names(keys: Sequence[str], names: Names, user: UserData, listing: Listing) -> None:
    if all(number_of(name) is not None for name in names):
        listing.notes.append(
            f"the classes are numbers, and prompts say {_TEMPLATE.format(names[0])!r}; give them "
            "names with dataset.class_names=FILE"
        )
    if names.by_position:
        listing.pairs = list(zip(keys, names, strict=True))
    changed = [pair for pair in zip(keys, names, strict=True) if pair[0] != pair[1]]
    if changed and user.class_names is None:
        key, name = changed[0]
        listing.notes.append(
            f"{len(changed)} of {len(keys)} classes have other names in prompts, with blanks in "
            f"place of _ and -: {key!r} is {name!r}"
        )
