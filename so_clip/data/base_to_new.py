"""Base and new classes: CoOp's two halves of a dataset."""

from collections.abc import Iterable
from dataclasses import replace

from so_clip.data.examples import Example, Splits
from so_clip.errors import InputError

BASE_TO_NEW = "base_to_new"


def base_and_new(splits: Splits) -> tuple[Splits, Splits]:
    """Return the first half of the classes, in label order, and the rest, both labelled from 0.

    If the number of classes is odd, the class in the middle is a base class.

    Raises:
        InputError: there is only one class, or one half has no test image.

    Source: subsample_classes in datasets/oxford_pets.py of github.com/KaiyangZhou/CoOp.
    """
    count = len(splits.class_names)
    if count < 2:
        raise InputError(
            f"protocol=base_to_new: {splits.dataset} has one class, and one class has no halves. "
            "Leave protocol out."
        )
    base = base_count(count)
    halves = _half(splits, 0, base), _half(splits, base, count)
    for name, half in zip(("base", "new"), halves, strict=True):
        if not half.test:
            raise InputError(
                f"protocol=base_to_new: {splits.file or splits.dataset} has no test image of the "
                f"{name} classes, {half.class_names[0]!r} to {half.class_names[-1]!r}. Add test "
                "images, or leave protocol out."
            )
    return halves


def base_count(classes: int) -> int:
    """Return the number of base classes among `classes` classes."""
    return -(-classes // 2)


def with_labels(examples: Iterable[Example], first: int, end: int) -> list[Example]:
    """Return the examples whose labels are from `first` up to `end`, labelled from 0."""
    return [Example(path, label - first) for path, label in examples if first <= label < end]


def _half(splits: Splits, first: int, end: int) -> Splits:
    return replace(
        splits,
        train=with_labels(splits.train, first, end),
        val=with_labels(splits.val, first, end),
        test=with_labels(splits.test, first, end),
        class_names=splits.class_names[first:end],
        parent_labels=splits.parent_labels[first:end],
    )
