"""What a dataset's lists hold: labelled images, in train, val and test."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

SPLITS = ("train", "val", "test")
# What is done about images that cannot be decoded.
RAISE, SKIP = ON_CORRUPT = ("raise", "skip")


class Example(NamedTuple):
    """One labelled image: `path` below the image folder, exactly as listed, and its `label`."""

    path: str
    label: int


@dataclass(frozen=True)
class Splits:
    """The three lists of a dataset, in the order of its files: few-shot draws depend on it.

    Attributes:
        train, val, test: the labelled images.
        class_names: the name of each label.
        file: what they were read from: the split file, or the folder of class folders or lists.
        sha256: of the split file's bytes. Where the lists come from several files or from a
            folder, of their contents one after the other, or of the listing.
        dataset: the card's name.
        val_from_train: there is no val list (ImageNet), so CLIP-LoRA's protocol takes its
            validation images out of the train list.
        parent_labels: for test images of another dataset's classes (`classes_of` in the card), the
            label there of each class.
        read_from: all files and folders whose change may change the lists or names, beside `file`.
    """

    train: list[Example]
    val: list[Example]
    test: list[Example]
    class_names: list[str]
    file: Path | None = None
    sha256: str | None = None
    dataset: str = ""
    val_from_train: bool = False
    parent_labels: tuple[int, ...] = ()
    read_from: tuple[Path, ...] = ()
