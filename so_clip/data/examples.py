"""The lists of a dataset: labelled images in train, val and test."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

SPLITS = ("train", "val", "test")
# Choices for images that cannot be decoded: stop, or run without them.
SKIP = "skip"


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
        file: the source of the lists: the split file, or the folder of class folders or lists.
        sha256: of the split file's bytes. For several files, of their contents one after the
            other. For a folder, of its listing.
        dataset: the card's name.
        val_from_train: there is no val list (ImageNet), so CLIP-LoRA's protocol draws its
            validation images from the train list.
        parent_labels: for test images of another dataset's classes (`classes_of` in the card), the
            label of each class in that dataset.
        read_from: other files and folders; if one of them changes, lists or names may change.
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

    @classmethod
    def of(cls, lists: Mapping[str, list[Example]], **facts: Any) -> "Splits":
        """Return the lists of train, val and test with the other attributes."""
        return cls(lists["train"], lists["val"], lists["test"], **facts)

    @property
    def examples(self) -> list[Example]:
        """The train, val and test images, in this order."""
        return self.train + self.val + self.test

    @property
    def sizes(self) -> dict[str, int]:
        """The numbers of classes and of images, with the keys of `sizes` in a card."""
        counts = {split: len(getattr(self, split)) for split in SPLITS}
        return {"classes": len(self.class_names), **counts}
