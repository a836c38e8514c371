"""Imbalanced few shots: how many training images each class gets, and which."""

import heapq
import math
import random
from collections.abc import Sequence

from so_clip.data.examples import Example

# Below the first a single class takes all; above the second all are alike.
LEAST_ALPHA, MOST_ALPHA = 1e-3, 1e6


def class_counts(
    available: Sequence[int], total: int, alpha: float, stream: random.Random
) -> list[int]:
    """Share `total` images out among the classes by a draw from a symmetric Dirichlet(alpha).

    Each class gets one, then the rest go one by one to the class with the highest quotient of its
    share and the images that it has, plus a half (Sainte-Laguë's rule). A class that has all of its
    images gets more only when all others have theirs, too.

    Args:
        available: images that each class has, at least one.
        total: images to share out, at least one a class.
        alpha: small ones are uneven; from LEAST_ALPHA to MOST_ALPHA.
        stream: one number for each gamma draw, and more, are taken from it.

    Returns:
        Images of each class: they add up to `total`, and none is below one.
    """
    log_shares = [_log_gamma_draw(alpha, stream) for _ in available]
    counts = [1] * len(available)
    left = _hand_out(counts, log_shares, total - len(counts), available)
    _hand_out(counts, log_shares, left, [total] * len(counts))
    return counts


def _log_gamma_draw(alpha: float, stream: random.Random) -> float:
    """Return the logarithm of a draw from Gamma(alpha), which for small alpha is 0 in a float."""
    # Gamma(alpha) is Gamma(alpha + 1) U^(1 / alpha) for a uniform U.
    larger = math.log(stream.gammavariate(alpha + 1, 1))
    return larger + math.log(1 - stream.random()) / alpha


def _hand_out(
    counts: list[int], log_shares: Sequence[float], extra: int, most: Sequence[int]
) -> int:
    """Raise `counts` by `extra` in all, none above its `most`; return what could not be given."""

    def place(label: int) -> tuple[float, int]:
        return math.log(counts[label] + 0.5) - log_shares[label], label

    waiting = [place(label) for label, count in enumerate(counts) if count < most[label]]
    heapq.heapify(waiting)
    while extra and waiting:
        label = waiting[0][1]
        counts[label] += 1
        extra -= 1
        if counts[label] < most[label]:
            heapq.heapreplace(waiting, place(label))
        else:
            heapq.heappop(waiting)
    return extra


def draw_count(group: Sequence[Example], count: int, stream: random.Random) -> list[Example]:
    """Draw so many of a class's images; none comes a second time before all have come once."""
    drawn = stream.sample(group, min(count, len(group)))
    return drawn + stream.choices(group, k=count - len(drawn))
