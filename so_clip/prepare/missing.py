"""What a dataset lacks, image by image."""

import os
from pathlib import Path

from so_clip.data.cards.card import DatasetCard
from so_clip.data.examples import Example, Splits
from so_clip.data.images import ImageFolder
from so_clip.data.lists.splits import dataset_folder, load_splits
from so_clip.errors import InputError


def lacking(card: DatasetCard, root: Path) -> list[str]:
    """Return what a dataset below `root` lacks: paths of images, or one sentence; [] if nothing.

    Images that are empty files are lacking. Where a split file lists the images, those count;
    otherwise their published number.

    Raises:
        InputError: the split file is missing or cannot be used.
    """
    by_split_file = card.layout == "split_file"
    try:
        splits = load_splits(card, root)
    except InputError as error:
        if by_split_file:
            raise
        return [str(error)]
    examples = all_examples(splits)
    folder = dataset_folder(card, root) / card.image_dir
    paths = [example.path for example in examples]
    missing = ImageFolder(folder).missing(paths)
    gone = set(missing)
    missing += [path for path in paths if path not in gone and is_empty_file(folder / path)]
    published = sum(card.sizes[split] for split in ("train", "val", "test"))
    if not missing and not by_split_file and len(examples) != published:
        return [f"{folder} holds {len(examples)} images where {published} were published"]
    return missing


def all_examples(splits: Splits) -> list[Example]:
    """Return the train, val and test images, in this order."""
    return splits.train + splits.val + splits.test


def is_empty_file(path: Path) -> bool:
    """Tell whether `path` is a file of no bytes."""
    try:
        return path.is_file() and not os.path.getsize(path)  # noqa: PTH202
    except OSError:
        return False
