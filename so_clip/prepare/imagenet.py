"""ImageNet, whose terms forbid fetching it for others: linked from a copy that the user has."""

from pathlib import Path

from so_clip.data.cards.card import DatasetCard
from so_clip.data.lists.splits import load_splits
from so_clip.errors import InputError
from so_clip.prepare.place import merge, remove

# Below the folder that is given: itself, Kaggle's, the original kit's, CoOp's.
_PLACES = ("", "images", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC", "imagenet/images")
_HALVES = ("train", "val")


def link_imagenet(card: DatasetCard, root: Path, copy: Path | None, work: Path) -> int:
    """Link train/ and val/ of an existing copy into CoOp's layout; return the number of images.

    Args:
        card: ImageNet's.
        root: the folder of all datasets.
        copy: a folder that holds train/ and val/, or that has them where Kaggle or CoOp put them.
        work: a folder for links until they are known to be good.

    Raises:
        InputError: no copy is given, it has no such folders, or they are not the thousand classes.
    """
    found = _find(copy) if copy else None
    if found is None:
        looked = f" {copy} has no folders train/ and val/ in it." if copy else ""
        raise InputError(
            f"dataset={card.name}: its terms forbid fetching it for you.{looked} Get it from "
            f"{card.homepage}, then name the folder that holds train/ and val/ with "
            "imagenet_dir=FOLDER; it is linked, not copied."
        )
    remove(work)
    staged = work / card.folder / card.image_dir
    staged.mkdir(parents=True)
    for half in _HALVES:
        (staged / half).symlink_to((found / half).resolve(), target_is_directory=True)
    try:
        splits = load_splits(card, work)
    except InputError as error:
        raise InputError(
            f"imagenet_dir={copy}: cannot be linked: {error} The validation images, too, must lie "
            "in one folder a class, as torchvision.datasets.ImageNet sorts them."
        ) from error
    target = root / card.folder / card.image_dir
    for half in _HALVES:
        # The folder that it pointed to has gone.
        if (target / half).is_symlink() and not (target / half).exists():
            (target / half).unlink()
    merge(staged, target)
    return len(splits.train) + len(splits.test)


def _find(copy: Path) -> Path | None:
    places = (copy / place for place in _PLACES)
    return next((p for p in places if all((p / half).is_dir() for half in _HALVES)), None)
