"""The images that a dataset still needs."""

from pathlib import Path

from so_clip.data.cards.card import DatasetCard
from so_clip.data.images import ImageFolder
from so_clip.data.lists.splits import dataset_folder, load_splits
from so_clip.data.unicode_names import DiskNames
from so_clip.errors import InputError


def missing_images(card: DatasetCard, root: Path) -> list[str]:
    """Return the paths of missing images of a dataset below `root`, or one sentence; [] if none.

    Empty files count as missing. The split file lists the images; without one, their number must be
    the published number.

    Raises:
        InputError: the split file is missing or cannot be used.
    """
    has_split_file = card.layout == "split_file"
    try:
        splits = load_splits(card, root)
    except InputError as error:
        if has_split_file:
            raise
        return [str(error)]
    paths = [example.path for example in splits.examples]
    folder = dataset_folder(card, root) / card.image_dir
    missing = ImageFolder(folder).missing(paths)
    absent, names = set(missing), DiskNames(folder)
    missing += [
        path for path in paths if path not in absent and is_empty_file(folder / names.find(path))
    ]
    published = sum(card.sizes[split] for split in ("train", "val", "test"))
    if not missing and not has_split_file and len(paths) != published:
        return [f"{folder} holds {len(paths)} images where {published} were published"]
    return missing


def is_empty_file(path: Path) -> bool:
    """Return whether `path` is a file without bytes."""
    try:
        return path.is_file() and not path.stat().st_size
    except OSError:
        return False
