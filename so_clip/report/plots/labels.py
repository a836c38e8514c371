"""Place names beside points, so that no name covers another name or a point.

adjustText moves names by random forces until its time is over. Of 25 close points it leaves some
names overlapping, and it needs numpy's global seed. Trying fixed places around each point is faster
and gives the same picture every time.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from so_clip.report.plots.style import MUTED

# Pixels between a point and its name, and around every name.
_GAP, _PAD = 7.0, 1.5
_RINGS, _RING = 14, 7.0
# Sixteenths of a turn: right, left, above, below, then between these.
_TURNS = (0, 8, 4, 12, 2, 14, 6, 10, 1, 15, 7, 9, 3, 13, 5, 11)
# Left, bottom, right, top in pixels.
Box = tuple[float, float, float, float]


def place(axis: Any, texts: Sequence[Any], points: Sequence[tuple[float, float]]) -> None:
    """Move each text to the nearest free place around its point, with a thin line if it is far.

    Texts are placed in order, so the first has the best choice. A text without a free place stays
    to the right of its point, or further left if it would leave the panel.

    Args:
        axis: with its final limits.
        texts: the drawn text of each point.
        points: in data coordinates.
    """
    axis.figure.draw_without_rendering()
    pixels = axis.transData.transform(points).tolist()
    inside: Box = axis.get_window_extent().extents.tolist()
    taken: list[Box] = [(x - _GAP, y - _GAP, x + _GAP, y + _GAP) for x, y in pixels]
    to_data = axis.transData.inverted()
    for index, (text, (x, y)) in enumerate(zip(texts, pixels, strict=True)):
        extent = text.get_window_extent()
        width, height = extent.width + 2 * _PAD, extent.height + 2 * _PAD
        others = taken[:index] + taken[index + 1 :]
        free = (
            (box, is_far)
            for box, is_far in _candidates(x, y, width, height)
            if _within(box, inside) and not any(_overlap(box, other) for other in others)
        )
        box, is_far = next(free, (_beside(x, y, width, height, inside), False))
        taken.append(box)
        corner = to_data.transform((box[0] + _PAD, box[1] + _PAD))
        text.set(position=corner, ha="left", va="bottom")
        if is_far:
            near = (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3]))
            line = to_data.transform([(x, y), near]).T
            axis.plot(*line, color=MUTED, linewidth=0.45, zorder=1.5)


def _beside(x: float, y: float, width: float, height: float, inside: Box) -> Box:
    """Return the box to the right of a point, moved into the panel."""
    left = max(inside[0], min(x + _GAP, inside[2] - width))
    bottom = max(inside[1], min(y - height / 2, inside[3] - height))
    return left, bottom, left + width, bottom + height


def _candidates(x: float, y: float, width: float, height: float) -> Iterator[tuple[Box, bool]]:
    """Yield boxes around a point, near ones first, and whether they need a line to the point."""
    for ring in range(_RINGS):
        distance = _GAP + _RING * ring
        for turn in _TURNS:
            angle = 2 * math.pi * turn / len(_TURNS)
            # The side of the box that faces the point is on the ring.
            left = x + math.cos(angle) * (distance + width / 2) - width / 2
            bottom = y + math.sin(angle) * (distance + height / 2) - height / 2
            yield (left, bottom, left + width, bottom + height), ring > 0


def _within(box: Box, outer: Box) -> bool:
    return box[0] >= outer[0] and box[1] >= outer[1] and box[2] <= outer[2] and box[3] <= outer[3]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
