"""Names beside points, so that no name covers another or a point."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from so_clip.report.plots.style import MUTED

# Pixels (at the figure's dpi) between a point and its name, and around every name.
_GAP, _PAD = 7.0, 1.5
_TURNS, _RINGS = 16, 14
# Left, bottom, right, top.
Box = tuple[float, float, float, float]


def place(axis: Any, texts: Sequence[Any], points: Sequence[tuple[float, float]]) -> None:
    """Move each text to the nearest free place around its point; tie it to it if that is far.

    Texts are placed in order, so the first has the best choice. One for which nothing is free stays
    to the right of its point.

    Args:
        axis: with its final limits.
        texts: one a point, as drawn.
        points: in the axis's data coordinates.
    """
    figure = axis.figure
    figure.draw_without_rendering()
    at = axis.transData.transform(points).tolist()
    inside: Box = axis.get_window_extent().extents.tolist()
    taken: list[Box] = [(x - _GAP, y - _GAP, x + _GAP, y + _GAP) for x, y in at]
    back = axis.transData.inverted()
    for index, (text, (x, y)) in enumerate(zip(texts, at, strict=True)):
        extent = text.get_window_extent()
        width, height = extent.width + 2 * _PAD, extent.height + 2 * _PAD
        others = taken[:index] + taken[index + 1 :]
        for box, far in _candidates(x, y, width, height):  # noqa: B007 - far is used below
            if _within(box, inside) and not any(_overlap(box, other) for other in others):
                break
        else:
            box, far = (x + _GAP, y - height / 2, x + _GAP + width, y + height / 2), False
        taken.append(box)
        corner = back.transform((box[0] + _PAD, box[1] + _PAD))
        text.set(position=corner, ha="left", va="bottom")
        if far:
            _tie(axis, back, (x, y), box)


def _candidates(x: float, y: float, width: float, height: float) -> Iterator[tuple[Box, bool]]:
    """Yield boxes around a point, the near ones first, and whether they need a line to it."""
    for ring in range(_RINGS):
        away = _GAP + 7.0 * ring
        for turn in range(_TURNS):
            # Right, left, above, below, and then between these.
            part = (0, 8, 4, 12, 2, 14, 6, 10, 1, 15, 7, 9, 3, 13, 5, 11)[turn]
            angle = 2 * math.pi * part / _TURNS
            # The point of the box that faces the point is on the ring.
            middle_x = x + math.cos(angle) * (away + width / 2)
            middle_y = y + math.sin(angle) * (away + height / 2)
            half = width / 2, height / 2
            box = (middle_x - half[0], middle_y - half[1], middle_x + half[0], middle_y + half[1])
            yield box, ring > 0


def _within(box: Box, outer: Box) -> bool:
    return box[0] >= outer[0] and box[1] >= outer[1] and box[2] <= outer[2] and box[3] <= outer[3]


def _overlap(one: Box, other: Box) -> bool:
    apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    return not apart


def _tie(axis: Any, back: Any, point: tuple[float, float], box: Box) -> None:
    """Draw a thin line from the point to the nearest place of the box."""
    near = (
        min(max(point[0], box[0]), box[2]),
        min(max(point[1], box[1]), box[3]),
    )
    (x0, y0), (x1, y1) = back.transform([point, near])
    axis.plot([x0, x1], [y0, y1], color=MUTED, linewidth=0.45, zorder=1.5)
