"""Read a dataset's lists, from a card and a folder, for every layout."""

import importlib.util
import os
import stat
from pathlib import Path

from so_clip.data.cards.card import PACKAGE_LAYOUT, TEST_LAYOUTS, DatasetCard, how_to_get
from so_clip.data.examples import SPLITS, Splits
from so_clip.data.lists import layouts
from so_clip.data.lists.misplaced import find_misplaced
from so_clip.data.lists.split_file import read_split_file
from so_clip.data.unicode_names import composed
from so_clip.errors import InputError, reason_of

_COUNTED = {"classes": "classes"} | {split: f"{split} images" for split in SPLITS}


def load_splits(
    card: DatasetCard, data_root: Path | None, split_file: Path | None = None
) -> Splits:
    """Read the train, val and test lists of a dataset. Images are not opened.

    If there is a split file, class names and their order come from it, as in CoOp. A card that a
    user wrote must agree with its split file.

    Args:
        card: the dataset.
        data_root: the folder of all datasets. A split file may be in the dataset's folder, in
            `data_root` itself or in `data_root`/splits (flat collections of split files). Datasets
            in a package, such as the digits, need no data root.
        split_file: read this file instead.

    Raises:
        InputError: no data root, no split file, or a bad one; the message names the file, the
            entry, its value, and the way out.

    Source: the layouts of github.com/KaiyangZhou/CoOp, DATASETS.md and datasets/*.py.
    """
    if card.layout == "split_file":
        splits = read_split_file(split_file or _find_split_file(card, data_root), card)
        # Another file, or a part of a published one, may hold less.
        if split_file is None and not card.published:
            _compare(splits, card)
        return splits
    if split_file is not None:
        raise InputError(
            f"dataset.split_file={split_file}: {card.title} has no split file; its lists come from "
            f"layout: {card.layout}. Leave dataset.split_file out."
        )
    if card.layout == "digits":
        return layouts.digits_splits(card)
    read = {"imagenet": layouts.imagenet_splits, "fgvc_aircraft": layouts.aircraft_splits}
    read |= dict.fromkeys(TEST_LAYOUTS, layouts.class_folder_splits)
    read[PACKAGE_LAYOUT] = layouts.package_splits
    folder = dataset_folder(card, data_root)
    if data_root is not None and not folder.exists():
        refuse_misplaced(card, data_root)
    return read[card.layout](card, folder)


def refuse_misplaced(card: DatasetCard, data_root: Path) -> None:
    """Raise InputError if the files of a dataset are there, but in another place."""
    if misplaced := find_misplaced(card, data_root):
        raise InputError(f"dataset={card.name}: {misplaced.problem}. {misplaced.way_out}")


def _compare(splits: Splits, card: DatasetCard) -> None:
    place = f"{splits.file}, which datasets/{card.name}.yaml describes"
    names = zip(splits.class_names, card.class_names, strict=False)
    for label, (found, expected) in enumerate(names):
        if composed(found) != composed(expected):
            raise InputError(
                f"{place}: label {label} is {found!r} there, but class_names[{label}] is "
                f"{expected!r} in the card. Make them equal."
            )
    for key, count in splits.sizes.items():
        if count != card.sizes[key]:
            raise InputError(
                f"{place}: holds {count} {_COUNTED[key]}, but sizes.{key} is {card.sizes[key]} in "
                f"the card. Write sizes.{key}: {count} there, or repair the file."
            )


def dataset_folder(card: DatasetCard, data_root: Path | None) -> Path:
    """Return the folder of a dataset, in `data_root` or in its package.

    It is the first existing folder among CoOp's and the other folders on the card.

    Raises:
        InputError: there is no data root, or the package is not installed.
    """
    if card.package is None:
        root = require_data_root(card, data_root)
        folders = [root / folder for folder in (card.folder, *card.other_folders)]
        # os.path.isdir, unlike Path.is_dir, never raises.
        existing = (
            folder
            for folder in folders
            if os.path.isdir(folder / card.image_dir)  # noqa: PTH112
        )
        return next(existing, folders[0])
    # The package is not imported, because its code is not needed.
    found = importlib.util.find_spec(card.package["module"])
    homes = list(found.submodule_search_locations or ()) if found else []
    if not homes:
        raise InputError(
            f"dataset={card.name}: {card.title} need {card.package['module']}, which is not "
            f"installed. {how_to_get(card)}"
        )
    return Path(homes[0]) / card.folder


def require_data_root(card: DatasetCard, data_root: Path | None) -> Path:
    """Return `data_root` if it is a folder.

    Raises:
        InputError: it is not given, does not exist or is not a folder.
    """
    if data_root is None:
        problem = "data_root is not given"
    else:
        try:
            if stat.S_ISDIR(data_root.stat().st_mode):
                return data_root
            problem = f"data_root={data_root} is not a folder"
        except (OSError, ValueError) as error:
            problem = f"data_root={data_root}: {reason_of(error)}"
    raise InputError(
        f"{problem}. Give the folder that holds {card.folder}/ with data_root=FOLDER. "
        f"{how_to_get(card)}"
    )


def split_file_places(card: DatasetCard, root: Path) -> list[Path]:
    """Return the possible paths of the split file of a dataset below `root`, in order."""
    assert card.split_file is not None, "load_card checks it"
    places = (root / card.folder, dataset_folder(card, root), root, root / "splits")
    return [place / card.split_file for place in dict.fromkeys(places)]


def _find_split_file(card: DatasetCard, data_root: Path | None) -> Path:
    candidates = split_file_places(card, require_data_root(card, data_root))
    for candidate in candidates:
        if os.path.isfile(candidate):  # noqa: PTH113 - Path.is_file raises on a locked folder
            return candidate
    assert data_root is not None, "require_data_root checks it"
    refuse_misplaced(card, data_root)
    looked = "\n".join(f"  {candidate}" for candidate in candidates)
    raise InputError(
        f"the split file of dataset={card.name} was not found. Looked for:\n{looked}\n"
        f"{how_to_get(card)} Or name the file: dataset.split_file=FILE."
    )
