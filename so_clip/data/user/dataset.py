"""One's own images as a dataset: a card and lists, made from what lies in a folder."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from so_clip.data.cards.card import USER_LAYOUTS, DatasetCard, card_names
from so_clip.data.examples import SPLITS, Example, Splits
from so_clip.data.lists.drawn_split import drawn
from so_clip.data.lists.listing import Listed, Listing, composed
from so_clip.data.user.class_names import class_names, in_order
from so_clip.data.user.csv_list import find_csv, list_csv
from so_clip.data.user.folder import list_folder
from so_clip.errors import InputError

SHARES = (0.5, 0.2, 0.3)
_TEMPLATE = "a photo of a {}."
# A part of a run folder's name, which most file systems end at 255 bytes.
_MAX_NAME_BYTES = 64


@dataclass(frozen=True)
class UserData:
    """How one's own images are found and divided: the options of dataset=folder and dataset=csv.

    Attributes:
        layout: "folder" or "csv".
        folder: where the images lie.
        csv_file: the list, where it is not the only CSV file in `folder`.
        split: "auto", "folders" or "drawn"; see list_folder.
        split_shares, split_seed: see drawn.
        class_names: a file of readable names; see class_names.
        follow_links: follow links that lead out of `folder`.
    """

    layout: str
    folder: Path
    csv_file: Path | None = None
    split: str = "auto"
    split_shares: tuple[float, ...] = SHARES
    split_seed: int = 1
    class_names: Path | None = None
    follow_links: bool = False

    @classmethod
    def from_json(cls, values: Mapping[str, Any] | None) -> "UserData | None":
        """Return what a run's recorded settings say under `own`."""
        if values is None:
            return None
        paths = ("folder", "csv_file", "class_names")
        given = {key: Path(each) if key in paths and each else each for key, each in values.items()}
        return cls(**given | {"split_shares": tuple(values["split_shares"])})


def user_name(layout: str, folder: Path) -> str:
    """Return what tables and run folders call one's own images: their folder's name.

    Letters, digits, - and _ are kept. What is a published dataset's name gets the layout added.
    """
    # Path.absolute keeps the dots of "..", whose name is none.
    last = composed(os.path.basename(os.path.abspath(folder)))  # noqa: PTH100, PTH119
    name = re.sub(r"[^\w-]+", "-", last).strip("-_")
    while len(name.encode()) > _MAX_NAME_BYTES:
        name = name[:-1]
    name = name or layout
    return f"{name}-{layout}" if name in card_names() else name


def check_name(name: str) -> str:
    """Return a name for one's own images if it can be one.

    Raises:
        InputError: it is a published dataset's, or no part of a folder's name.
    """
    if not re.fullmatch(r"[\w-]+", name) or len(name.encode()) > _MAX_NAME_BYTES:
        raise InputError(
            f"dataset.name={name}: must be made of letters, digits, _ and -, at most "
            f"{_MAX_NAME_BYTES} bytes of them."
        )
    if name in card_names():
        raise InputError(f"dataset.name={name}: is a published dataset's. Choose another.")
    return name


def read_own(own: UserData, name: str) -> tuple[DatasetCard, Splits, Listing]:
    """List one's own images, and divide them if they are not.

    Labels go by the classes' folders or labels, in order; lists are sorted by class and path.

    Args:
        own: the options.
        name: of the dataset.

    Raises:
        InputError: no such folder, nothing in it, fewer than two classes, a class without images,
            or no images to train on or to test; the message names it, and the way out.
    """
    listing = _listed(own)
    keys = in_order(listing.keys)
    _check_classes(listing, keys, own)
    names = class_names(keys, own.class_names, listing.file)
    if own.class_names is not None:
        listing.read_from.append(own.class_names)
    _note_names(keys, names, own, listing)
    images = listing.images
    if images[0].split is None:
        images = drawn(images, own.split_shares, own.split_seed)
    labels = {key: label for label, key in enumerate(keys)}
    images = sorted(images, key=lambda image: (labels[image.key], composed(image.path)))
    splits = _splits(images, labels, names, listing, name)
    sizes = {"classes": len(names)} | {each: len(getattr(splits, each)) for each in SPLITS}
    card = DatasetCard(
        name=name,
        title=name,
        layout=own.layout,
        folder="",
        image_dir="",
        sizes=sizes,
        templates={"plain": _TEMPLATE},
        licence="your own",
        homepage="none",
        citation="none",
        class_names=tuple(names),
        class_folders=tuple(keys),
    )
    return card, splits, listing


def _listed(own: UserData) -> Listing:
    assert own.layout in USER_LAYOUTS
    if not os.path.isdir(own.folder):  # noqa: PTH112 - Path.is_dir raises below a locked folder
        raise InputError(
            f"{own.folder}: there is no such folder. Give that of your images with "
            "data_root=FOLDER."
        )
    if own.layout == "csv":
        return list_csv(find_csv(own.folder, own.csv_file), own.folder)
    return list_folder(own.folder, own.split, own.follow_links)


def _check_classes(listing: Listing, keys: Sequence[str], own: UserData) -> None:
    there = Counter(image.key for image in listing.images)
    if own.layout == "folder" and len(keys) == 1 and there[keys[0]]:
        _check_one_folder(listing, keys[0], own)
    for key in keys:
        if not there[key]:
            raise InputError(
                f"{own.folder}: the class {key!r} holds no image. Give it some, or remove its "
                "folder."
            )
    if len(keys) < 2:
        found = f"one class, {keys[0]!r}" if keys else "no images"
        raise InputError(
            f"{listing.file}: holds {found}. A classifier needs two or more: add images of "
            "something else."
        )


def _check_one_folder(listing: Listing, key: str, own: UserData) -> None:
    """Say it where the folder of the classes' folders was meant."""
    inner = {image.path.split("/")[1] for image in listing.images if image.path.count("/") > 1}
    if len(inner) > 1:
        raise InputError(
            f"{own.folder}: holds one class, {key!r}, with the folders "
            f"{', '.join(sorted(inner)[:3])} in it. If these are the classes, give "
            f"data_root={own.folder / key}."
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
        assert split is not None, "drawn above, if it was not there"
        lists[split].append(Example(path, labels[key]))
        # In one form of Unicode, so that a copy on another system is the same split.
        total.update(json.dumps([composed(path), key, split]).encode())
    for split in ("train", "test"):
        if not lists[split]:
            raise InputError(
                f"{listing.file}: no image is in {split}. Add some; or leave the split to be drawn."
            )
    if not lists["val"]:
        listing.notes.append("there is no val split; no run chooses anything by it")
    untested = len(names) - len({example.label for example in lists["test"]})
    if untested:
        listing.notes.append(f"{untested} of {len(names)} classes have no test image")
    return Splits(
        train=lists["train"],
        val=lists["val"],
        test=lists["test"],
        class_names=names,
        file=listing.file,
        sha256=total.hexdigest(),
        dataset=dataset,
        read_from=tuple(listing.read_from),
    )


def _note_names(keys: Sequence[str], names: Sequence[str], own: UserData, listing: Listing) -> None:
    """Say it of names that prompts do not have as they are, and of numbers."""
    if all(name.isdigit() for name in names):
        listing.notes.append(
            f"the classes are numbers, and prompts say {_TEMPLATE.format(names[0])!r}; give them "
            "names by dataset.class_names=FILE"
        )
    changed = [pair for pair in zip(keys, names, strict=True) if pair[0] != pair[1]]
    if changed and own.class_names is None:
        key, name = changed[0]
        listing.notes.append(
            f"{len(changed)} of {len(keys)} classes have _ or - in their names, which prompts have "
            f"as blanks: {key!r} is {name!r}"
        )
