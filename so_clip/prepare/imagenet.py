"""ImageNet: its terms forbid a download for others, so the user's copy is linked."""

from pathlib import Path

from so_clip.data.cards.card import DatasetCard
from so_clip.data.lists.splits import load_splits
from so_clip.errors import InputError
from so_clip.prepare.place import merge, remove

# Folders of train/ and val/ below the user's folder: the folder itself, Kaggle's, the original
# development kit's and CoOp's.
_PLACES = ("", "images", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC", "imagenet/images")
_PARTS = ("train", "val")


def link_imagenet(card: DatasetCard, root: Path, copy: Path | None, work: Path) -> None:
    """Link train/ and val/ of an existing copy into CoOp's layout.

    Args:
        card: ImageNet's.
        root: the folder of all datasets.
        copy: a folder with train/ and val/, or with Kaggle's or CoOp's folders around them.
        work: a folder for the links until they are checked.

    Raises:
        InputError: there is no copy, or its folders are not those of the thousand classes.
    """
    places = [copy / place for place in _PLACES] if copy else []
    found = next((p for p in places if all((p / part).is_dir() for part in _PARTS)), None)
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
    for part in _PARTS:
        (staged / part).symlink_to((found / part).resolve(), target_is_directory=True)
    try:
        load_splits(card, work)
    except InputError as error:
        raise InputError(
            f"imagenet_dir={copy}: cannot be linked: {error} The validation images, too, must be "
            "in one folder per class, as torchvision.datasets.ImageNet sorts them."
        ) from error
    target = root / card.folder / card.image_dir
    for part in _PARTS:
        # A link to a folder that was removed.
        if (target / part).is_symlink() and not (target / part).exists():
            (target / part).unlink()
    merge(staged, target)
