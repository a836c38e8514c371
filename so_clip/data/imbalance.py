"""Imbalanced few-shot draws: the number of training images of each class, and the images."""

import heapq
import math
import random
from collections.abc import Sequence

from so_clip.data.examples import Example

# Below the first value one class takes all images; above the second all classes are equal.
LEAST_ALPHA, MOST_ALPHA = 1e-3, 1e6


def class_counts(
    available: Sequence[int], total: int, alpha: float, stream: random.Random
) -> list[int]:
    """Divide `total` images among the classes by a draw from a symmetric Dirichlet(alpha).

    Each class gets one image. Then each further image goes to the class with the highest quotient
    share / (count + 1/2) (Sainte-Laguë's rule). A class whose images are used up gets more only
    when all other classes are used up, too.

    Args:
        available: the number of images of each class, at least one.
        total: the number of images to divide, at least one per class.
        alpha: small values give uneven counts; from LEAST_ALPHA to MOST_ALPHA.
        stream: the random numbers of the gamma draws.

    Returns:
        The number of images of each class, at least one; they add up to `total`.
    """
    log_shares = [_log_gamma_draw(alpha, stream) for _ in available]
    counts = [1] * len(available)
    left = _hand_out(counts, log_shares, total - len(counts), available)
    _hand_out(counts, log_shares, left, [total] * len(counts))
    return counts


def _log_gamma_draw(alpha: float, stream: random.Random) -> float:
    """Return the logarithm of a draw from Gamma(alpha); a small alpha gives 0 as a float."""
    # Gamma(alpha) is Gamma(alpha + 1) U^(1 / alpha) for a uniform U.
    larger = math.log(stream.gammavariate(alpha + 1, 1))
    return larger + math.log(1 - stream.random()) / alpha


def _hand_out(
    counts: list[int], log_shares: Sequence[float], extra: int, most: Sequence[int]
) -> int:
    """Add `extra` to `counts`, at most up to `most` each; return the rest that did not fit."""

    def priority(label: int) -> tuple[float, int]:
        return math.log(counts[label] + 0.5) - log_shares[label], label

    waiting = [priority(label) for label, count in enumerate(counts) if count < most[label]]
    heapq.heapify(waiting)
    while extra and waiting:
        label = waiting[0][1]
        counts[label] += 1
        extra -= 1
        if counts[label] < most[label]:
            heapq.heapreplace(waiting, priority(label))
        else:
            heapq.heappop(waiting)
    return extra


def draw_count(group: Sequence[Example], count: int, stream: random.Random) -> list[Example]:
    """Draw `count` images of a class; no image repeats before all are drawn once."""
    drawn = stream.sample(group, min(count, len(group)))
    return drawn + stream.choices(group, k=count - len(drawn))
