"""What is damaged, set aside until something better is in its place."""

import os
from pathlib import Path

from so_clip.data.cards.card import DatasetCard
from so_clip.data.lists.split_file import read_split_file
from so_clip.data.lists.splits import dataset_folder, load_splits, split_file_places
from so_clip.errors import InputError
from so_clip.prepare.image_health import undecodable
from so_clip.prepare.missing import all_examples, lacking
from so_clip.prepare.place import move, remove


class Aside:
    """Files that are set aside, and put back where nothing has taken their place.

    Args:
        folder: where they are kept meanwhile; made when needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.taken: list[tuple[Path, Path]] = []

    def take(self, file: Path) -> None:
        """Set one file aside."""
        self.folder.mkdir(parents=True, exist_ok=True)
        place = self.folder / str(len(self.taken))
        remove(place)
        move(file, place)
        self.taken.append((file, place))

    def give_back(self) -> None:
        """Put back what nothing has replaced, and drop the rest."""
        for file, place in self.taken:
            if not os.path.lexists(file):
                move(place, file)
        remove(self.folder)


def take_bad_split_file(card: DatasetCard, root: Path, aside: Aside) -> None:
    """Set the split file aside if it cannot be used, or is one of other classes."""
    place = next((place for place in split_file_places(card, root) if place.is_file()), None)
    if place is None:
        return
    try:
        classes = len(read_split_file(place, card).class_names)
    except InputError:
        classes = 0
    if classes != card.sizes["classes"]:
        aside.take(place)


def take_bad_images(card: DatasetCard, root: Path, aside: Aside) -> None:
    """Set aside what is in an image's place and cannot be decoded, be it a folder.

    Raises:
        InputError: the split file cannot be used.
    """
    folder = dataset_folder(card, root) / card.image_dir
    try:
        missing = set(lacking(card, root))
        examples = all_examples(load_splits(card, root))
    except InputError:
        if card.layout == "split_file":
            raise
        return
    for path in missing:
        if (folder / path).exists() and not (folder / path).is_file():
            aside.take(folder / path)
    present = [example.path for example in examples if example.path not in missing]
    for path in undecodable(folder, present, f"decode {card.name}"):
        aside.take(folder / path)
