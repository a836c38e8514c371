"""A split of images that come undivided: drawn for each class, and the same on every machine."""

import hashlib
from collections.abc import Iterable, Sequence

from so_clip.data.examples import SPLITS
from so_clip.data.lists.listing import Listed, composed


def drawn(images: Iterable[Listed], shares: Sequence[float], seed: int) -> list[Listed]:
    """Return the images with a split each, class by class in shares of train, val and test.

    An image's place in its class is decided by the SHA-256 of the seed and its path, and by nothing
    else: not by the order of the listing, the machine, a random state, or other classes. An image
    that is added later moves one other at most from a split to the next.

    Args:
        images: of any order; their own splits are of no account.
        shares: of train, val and test, which add up to 1. Each is rounded; a class of two or more
            images has at least one to train on and one to test.
        seed: another one draws another split.

    Returns:
        The images, sorted by class and then by path, where é is é however it is written.
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
    """Return where train, val and test end among so many images."""
    # Nearly a half is a half: 0.7 x 5 must not depend on how 0.5 + 0.2 is rounded.
    train, val = (int(count * sum(shares[:parts]) + 0.5 + 1e-9) for parts in (1, 2))
    train = max(1, min(train, count - 1))
    return train, max(train, min(val, max(train, count - 1))), count
