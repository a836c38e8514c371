"""Datasets whose files are there, but not where the program looks for them."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from so_clip.data.cards.card import DatasetCard
from so_clip.system.commands import command, override


class Misplaced(NamedTuple):
    """A dataset in another place.

    Attributes:
        problem, way_out: sentences.
        data_root: the data root to give.
        move: the command that renames the folder; "" if its name is right.
    """

    problem: str
    way_out: str
    data_root: Path
    move: str = ""


def find_misplaced(card: DatasetCard, root: Path) -> Misplaced | None:
    """Find a dataset's files if `root` is its own folder, or if its folder has another spelling.

    Args:
        card: the dataset.
        root: the data root, where the dataset's folder was not found.

    Returns:
        None if the files are in neither place.
    """
    # Path.absolute keeps "..".
    root = Path(os.path.abspath(root))  # noqa: PTH100
    if "/" in card.folder or os.path.isdir(root / card.folder):  # noqa: PTH112
        return None
    named = _folded(root.name) in {
        _folded(name.split("/")[0]) for name in (card.folder, card.name, *card.other_folders)
    }
    if root != root.parent and _holds(card, root, need_both=not named):
        option = command(override("data_root", root.parent), program=())
        problem = f"data_root={root} is the folder of {card.title} itself"
        if root.name == card.folder:
            way_out = f"Give the folder around it: {option}."
            return Misplaced(problem, way_out, root.parent)
        move = command(root, root.parent / card.folder, program=("mv",))
        way_out = f"Rename it to {card.folder}, and give the folder around it: {move}; {option}."
        return Misplaced(problem, way_out, root.parent, move)
    for name in _names_in(root):
        if _folded(name) == _folded(card.folder) and _holds(card, root / name, need_both=False):
            move = command(root / name, root / card.folder, program=("mv",))
            problem = f"{root / name} is there, but the folder must have the name {card.folder}"
            return Misplaced(problem, f"Rename it: {move}.", root, move)
    return None


def _holds(card: DatasetCard, folder: Path, need_both: bool) -> bool:
    """Return whether a folder has the split file and the image folder of a dataset, or one."""
    parts = [part for part in (card.split_file, card.image_dir) if part]
    there = [os.path.exists(folder / part) for part in parts]  # noqa: PTH110
    return bool(there) and (all(there) and len(there) > 1 if need_both else any(there))


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).casefold()


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208
    except OSError:
        return []
