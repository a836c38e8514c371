"""The images of a dataset's classes that episodes draw from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from so_clip.data.base_to_new import base_count
from so_clip.data.examples import Example, Splits
from so_clip.data.unicode_names import composed

Half = Literal["all", "base", "novel"]
Pool = tuple[tuple[Example, ...], ...]


@dataclass(frozen=True)
class ClassPools:
    """The images of some classes of one dataset. No image is there twice.

    Attributes:
        source: the dataset's name.
        labels: the labels of the classes in the dataset.
        few_shot: the images of each class that few-shot images are drawn from.
        queries: the images of each class that query images are drawn from. None: from `few_shot`
            too, without the few-shot images of the task.
        half: the part of the dataset's classes.
        notes: what was left out, for the user.
    """

    source: str
    labels: tuple[int, ...]
    few_shot: Pool
    queries: Pool | None
    half: Half = "all"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        pools = [self.few_shot, *([self.queries] if self.queries is not None else [])]
        if any(len(pool) != len(self.labels) for pool in pools):
            raise ValueError(f"{self.source}: each label needs one tuple of images in each pool")
        least = self.least_images
        if any(len(images) < least for pool in pools for images in pool):
            raise ValueError(f"{self.source}: each class needs {least} images or more in each pool")
        paths = [example.path for pool in pools for images in pool for example in images]
        if len(set(paths)) < len(paths):
            raise ValueError(f"{self.source}: an image is in the pools twice")

    @property
    def least_images(self) -> int:
        """The least images of a class in a pool: one few-shot and one query image."""
        return 2 if self.queries is None else 1

    @property
    def title(self) -> str:
        """The classes in words, for messages."""
        return self.source if self.half == "all" else f"the {self.half} half of {self.source}"


def class_pools(
    splits: Splits, half: Half, query_split: Literal["test", "val"] | None
) -> ClassPools:
    """Return the images of a dataset's classes for episodes.

    Few-shot images come from the train list. An image that the lists give two labels is left out,
    and so is a query image that is in the train list. A class without enough images is left out.

    Args:
        splits: the dataset's lists.
        half: "base" is the first half of the classes, with the class in the middle, as in
            so_clip.data.base_to_new; "novel" is the rest.
        query_split: the list of the query images; None: the train list.
    """
    names = splits.class_names
    base = base_count(len(names))
    every = range(len(names))
    labels = {"all": every, "base": every[:base], "novel": every[base:]}[half]
    listed: list[Example] = [] if query_split is None else getattr(splits, query_split)
    trained = {composed(path) for path, _ in splits.train}
    two_labels = _with_two_labels([*splits.train, *listed])
    repeated = (trained & {composed(path) for path, _ in listed}) - two_labels
    few_shot = _by_label(splits.train, labels, two_labels)
    queries = None
    if query_split is not None:
        queries = _by_label(listed, labels, two_labels | repeated)
    needed = 2 if queries is None else 1
    kept = [
        label
        for label in labels
        if len(few_shot[label]) >= needed and (queries is None or queries[label])
    ]
    notes = []
    if two_labels:
        notes.append(f"images with two labels are left out: {len(two_labels)}{_first(two_labels)}")
    if repeated:
        notes.append(
            f"{query_split} images that are training images too are left out: {len(repeated)}"
            f"{_first(repeated)}"
        )
    if missing := [names[label] for label in sorted({*labels} - {*kept})]:
        images = f"1 training and 1 {query_split} image" if query_split else "2 training images"
        notes.append(
            f"classes with fewer images than {images} are left out: {len(missing)} of "
            f"{len(labels)}{_first(missing)}"
        )
    return ClassPools(
        splits.dataset,
        tuple(kept),
        tuple(few_shot[label] for label in kept),
        None if queries is None else tuple(queries[label] for label in kept),
        half,
        tuple(notes),
    )


def _with_two_labels(examples: Iterable[Example]) -> set[str]:
    """Return the paths, in composed Unicode, that have more than one label."""
    labels: dict[str, int] = {}
    return {
        path
        for path, label in ((composed(path), label) for path, label in examples)
        if labels.setdefault(path, label) != label
    }


def _by_label(
    examples: Iterable[Example], labels: Iterable[int], without: set[str]
) -> Mapping[int, tuple[Example, ...]]:
    """Return the images of each label, each once, in the order of the list."""
    found: dict[int, dict[str, Example]] = {label: {} for label in labels}
    for example in examples:
        if example.label in found and (path := composed(example.path)) not in without:
            found[example.label].setdefault(path, example)
    return {label: tuple(images.values()) for label, images in found.items()}


def _first(names: Iterable[str]) -> str:
    return f", such as {min(names)!r}"
