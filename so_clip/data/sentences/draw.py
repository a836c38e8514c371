"""The drawn training examples of a run on sentences, and the left-over ones to test on."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from so_clip.errors import InputError

# Left-over examples have an order of their own, so that they depend on the seed as little as
# possible.
_LEFTOVER_SEED = 20_101


def draw_rows(
    labels: Sequence[int], label_names: Sequence[str], shots: int, subset: str, seed: int
) -> list[int]:
    """Return the rows of the drawn training examples, in the order of the draw.

    "official" takes the first `shots` rows of a random order of all rows, without regard to
    labels. The `datasets` library shuffles in this way: `train.shuffle(seed).select(range(shots))`.
    "balanced" draws `shots` / K rows of each of K classes without replacement, and then puts all
    of them into a random order.

    Args:
        labels: of all training rows, in the file's order.
        label_names: in label order.
        shots: examples in all.
        subset: "official" or "balanced".
        seed: 0 or more.

    Raises:
        InputError: there are fewer examples than shots, or, for "balanced", shots is no multiple
            of K, or a class has too few examples.

    Source: BERT/SO/main.py in github.com/nairouz/SO (seed 42, 32 shots). Its 32 rows of RTE were
        compared once with those of datasets 5.2.0, and are equal.
    """
    if shots > len(labels):
        raise InputError(
            f"shots={shots}: the training file has {len(labels)} examples. Give shots="
            f"{len(labels)} or fewer."
        )
    stream = np.random.default_rng(seed)
    if subset == "official":
        return [int(row) for row in stream.permutation(len(labels))[:shots]]
    classes = len(label_names)
    if shots % classes:
        fewer, more = shots - shots % classes, shots - shots % classes + classes
        raise InputError(
            f"shots={shots}: subset=balanced draws as many examples of each of {classes} classes. "
            f"Give shots={fewer or more}, or subset=official."
        )
    drawn: list[int] = []
    for label, name in enumerate(label_names):
        of_class = np.flatnonzero(np.asarray(labels) == label)
        if len(of_class) < shots // classes:
            raise InputError(
                f"shots={shots}: subset=balanced needs {shots // classes} examples of {name!r}, "
                f"but the training file has {len(of_class)}. Give fewer shots, or "
                "subset=official."
            )
        drawn += stream.permutation(of_class)[: shots // classes].tolist()
    return [int(row) for row in stream.permutation(drawn)]


def leftover_rows(count: int, drawn: Sequence[int], wanted: int) -> list[int]:
    """Return up to `wanted` training rows that are not drawn, in the file's order.

    They are the first ones of one fixed random order of all rows, without the drawn rows. So the
    draws of different seeds leave nearly the same rows over: they differ in drawn rows only.

    Args:
        count: all training rows.
        drawn: the drawn rows.
        wanted: as many as the validation split has.

    Raises:
        InputError: no row is left over.
    """
    taken = set(drawn)
    order = np.random.default_rng(_LEFTOVER_SEED).permutation(count).tolist()
    left = [row for row in order if row not in taken]
    if not left:
        raise InputError(
            f"split=leftover: all {count} training examples are drawn. Give fewer shots, or "
            "split=validation."
        )
    return sorted(left[:wanted])


def class_counts(labels: Sequence[int], classes: int) -> list[int]:
    """Return the number of examples of each class, by label."""
    counts = Counter(labels)
    return [counts[label] for label in range(classes)]
