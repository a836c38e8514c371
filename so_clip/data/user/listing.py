"""The list of a user's own images, from folders or a CSV file, and the split that is drawn."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from so_clip.data.examples import SPLITS
from so_clip.data.unicode_names import composed

# Common names of the three lists, in lower case and without blanks, _ and -.
_TRAIN, _VAL, _TEST = SPLITS
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), _TRAIN),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev", "development"), _VAL),
    **dict.fromkeys(("test", "testing", "holdout", "heldout"), _TEST),
}
# These names have one meaning. Others need a note.
_PLAIN_WORDS = (*SPLITS, "training", "testing", "valid", "validation")
# These are test images, or validation images beside another test list.
_EVALUATION_WORDS = ("eval", "evaluation")


def splits_of(names: Iterable[str]) -> dict[str, str]:
    """Return the split that each name of a list stands for; other names are left out.

    Capitals, blanks, _ and - do not matter: "Hold-out" is test. "eval" is test, or val if another
    name stands for test.
    """
    words = {name: re.sub(r"[\s_-]", "", name).lower() for name in names}
    found = {name: _SPLIT_WORDS[word] for name, word in words.items() if word in _SPLIT_WORDS}
    evaluation = _VAL if _TEST in found.values() else _TEST
    return found | {name: evaluation for name, word in words.items() if word in _EVALUATION_WORDS}


def is_unusual(name: str) -> bool:
    """Return whether the name of a split may have another meaning, such as dev or eval."""
    return name.lower() not in _PLAIN_WORDS


class Listed(NamedTuple):
    """One image: its `path` on the disk, the `key` of its class, and its split.

    The split is None if it has to be drawn.
    """

    path: str
    key: str
    split: str | None


@dataclass
class Listing:
    """A user's own images as they were found.

    Attributes:
        file: the CSV file or the folder that was read.
        images: in any order.
        keys: the keys of all classes, also of classes without an image.
        read_from: files and folders; if one of them changes, the listing may change.
        notes: sentences about skipped files and choices with another reading.
        pairs: key and name of each class if a list without keys gave the names.
    """

    file: Path
    images: list[Listed] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    read_from: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pairs: list[tuple[str, str]] = field(default_factory=list)


def counts_text(counts: "Counter[str]", most: int = 4) -> str:
    """Return counts as text, the highest first: ".txt (12), .heic (3)"."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{name} ({count})" for name, count in ranked[:most]]
    return ", ".join(shown + (["..."] if len(ranked) > most else []))


def draw_split(images: Iterable[Listed], shares: Sequence[float], seed: int) -> list[Listed]:
    """Give each image a split, class by class, in shares of train, val and test.

    The SHA-256 of the seed and the path alone decides the place of an image within its class. The
    order of the listing, the machine, random states and other classes do not matter. An image that
    is added later moves at most one other image from one split to the next.

    Args:
        images: in any order; their own splits are ignored.
        shares: of train, val and test; they add up to 1. Each is rounded. A class of two or more
            images has at least one to train on and one to test.
        seed: another seed draws another split.

    Returns:
        The images, sorted by class and path. Both Unicode forms of é count as the same character.
    """
    groups: dict[str, list[Listed]] = {}
    for image in images:
        groups.setdefault(image.key, []).append(image)
    divided = []
    for key in sorted(groups):
        ranked = sorted(groups[key], key=lambda image: _rank(image.path, seed))
        ends = _ends(len(ranked), shares)
        for split, start, end in zip(SPLITS, (0, *ends), ends, strict=False):
            divided += [image._replace(split=split) for image in ranked[start:end]]
    return sorted(divided, key=lambda image: (image.key, composed(image.path)))


def _rank(path: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{composed(path)}".encode()).digest()


def _ends(count: int, shares: Sequence[float]) -> tuple[int, int, int]:
    # A value just below one half is rounded up: 0.7 x 5 must not depend on the sum 0.5 + 0.2.
    train, val = (int(count * sum(shares[:parts]) + 0.5 + 1e-9) for parts in (1, 2))
    train = max(1, min(train, count - 1))
    return train, max(train, min(val, max(train, count - 1))), count
