"""Damaged files are set aside until a good file is in their place."""

import os
from pathlib import Path

from so_clip.data.cache.corrupt import errors_of
from so_clip.data.cards.card import DatasetCard
from so_clip.data.images import ImageFolder
from so_clip.data.lists.split_file import read_split_file
from so_clip.data.lists.splits import dataset_folder, load_splits, split_file_places
from so_clip.errors import InputError
from so_clip.prepare.missing import missing_images
from so_clip.prepare.place import move, remove


class SetAside:
    """Files that are moved away, and moved back if nothing has replaced them.

    Args:
        folder: keeps the files meanwhile; made when it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._moved: list[tuple[Path, Path]] = []

    def add(self, file: Path) -> None:
        """Move one file away."""
        self.folder.mkdir(parents=True, exist_ok=True)
        place = self.folder / str(len(self._moved))
        remove(place)
        move(file, place)
        self._moved.append((file, place))

    def add_bad_split_file(self, card: DatasetCard, root: Path) -> None:
        """Move the split file away if it cannot be used, or lists another number of classes."""
        places = split_file_places(card, root)
        file = next((place for place in places if place.is_file()), None)
        if file is None:
            return
        try:
            classes = len(read_split_file(file, card).class_names)
        except InputError:
            classes = 0
        if classes != card.sizes["classes"]:
            self.add(file)

    def add_bad_images(self, card: DatasetCard, root: Path) -> None:
        """Move away images that cannot be decoded, and folders and links in an image's place.

        Raises:
            InputError: the split file cannot be used.
        """
        folder = dataset_folder(card, root) / card.image_dir
        try:
            missing = set(missing_images(card, root))
            examples = load_splits(card, root).examples
        except InputError:
            if card.layout == "split_file":
                raise
            return
        for path in missing:
            if (folder / path).exists() and not (folder / path).is_file():
                self.add(folder / path)
        present = [example.path for example in examples if example.path not in missing]
        for path in errors_of(ImageFolder(folder), present, f"decode {card.name}"):
            self.add(folder / path)

    def give_back(self) -> None:
        """Move files back that nothing has replaced, and remove the others."""
        for file, place in self._moved:
            if not os.path.lexists(file):
                move(place, file)
        remove(self.folder)
