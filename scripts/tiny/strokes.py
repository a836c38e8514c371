"""How people write the ten digits, as pen strokes: templates, their variation, and the drawing.

A template is a list of strokes in a unit box (x to the right, y downwards). A stroke is smooth (a
Catmull-Rom curve through its points) or straight (corners at its points). Nothing here was fitted
to pictures: the author drew the templates.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

CANVAS = 128  # pixels per side of the drawing before it is cropped and scaled


class Stroke(NamedTuple):
    """One movement of the pen through points_P2 (unit box)."""

    points: tuple[tuple[float, float], ...]
    smooth: bool = True


def _curve(*points: tuple[float, float]) -> Stroke:
    return Stroke(points, smooth=True)


def _line(*points: tuple[float, float]) -> Stroke:
    return Stroke(points, smooth=False)


_OVAL = ((0.5, 0.0), (0.2, 0.1), (0.08, 0.5), (0.2, 0.9), (0.5, 1.0), (0.8, 0.9), (0.92, 0.5),
         (0.8, 0.1), (0.5, 0.0))  # fmt: skip
_BAR = (0.5, 0.0), (0.5, 1.0)

TEMPLATES: dict[int, tuple[tuple[Stroke, ...], ...]] = {
    0: (
        (_curve(*_OVAL),),
        (_curve(*_OVAL[:-1], (0.42, 0.06)),),
        (_curve((0.6, 0.04), (0.3, 0.08), (0.12, 0.5), (0.3, 0.95), (0.62, 0.96), (0.88, 0.55),
                (0.75, 0.12), (0.45, 0.02)),),
        (_curve((0.5, 0.0), (0.32, 0.15), (0.25, 0.5), (0.32, 0.85), (0.5, 1.0), (0.68, 0.85),
                (0.75, 0.5), (0.68, 0.15), (0.5, 0.0)),),
    ),
    1: (
        (_line(*_BAR),),
        (_line((0.3, 0.22), *_BAR),),
        (_line((0.36, 0.14), *_BAR), _line((0.28, 1.0), (0.72, 1.0))),
        (_line((0.2, 0.3), *_BAR), _line((0.2, 1.0), (0.8, 1.0))),
        (_line((0.62, 0.0), (0.4, 1.0)),),
    ),
    2: (
        (_curve((0.12, 0.25), (0.25, 0.05), (0.55, 0.0), (0.82, 0.15), (0.78, 0.42), (0.5, 0.7),
                (0.12, 0.97)), _line((0.12, 0.97), (0.9, 0.97))),
        (_curve((0.15, 0.15), (0.5, 0.0), (0.8, 0.2), (0.7, 0.5), (0.35, 0.85), (0.15, 0.92),
                (0.2, 0.76), (0.4, 0.8), (0.65, 0.97), (0.95, 0.9)),),
        (_curve((0.1, 0.1), (0.5, 0.02), (0.75, 0.2), (0.6, 0.55), (0.1, 1.0)),
         _curve((0.1, 1.0), (0.5, 0.94), (0.92, 1.0))),
    ),
    3: (
        (_curve((0.15, 0.12), (0.45, 0.0), (0.8, 0.12), (0.75, 0.36), (0.42, 0.47)),
         _curve((0.42, 0.47), (0.78, 0.55), (0.88, 0.78), (0.55, 1.0), (0.1, 0.88))),
        (_line((0.12, 0.02), (0.82, 0.02), (0.42, 0.42)),
         _curve((0.42, 0.42), (0.8, 0.52), (0.84, 0.82), (0.5, 1.0), (0.1, 0.9))),
        (_curve((0.2, 0.08), (0.6, 0.0), (0.78, 0.22), (0.5, 0.45), (0.82, 0.66), (0.7, 0.95),
                (0.35, 1.0), (0.12, 0.85)),),
    ),
    4: (
        (_line((0.3, 0.0), (0.1, 0.58), (0.92, 0.58)), _line((0.7, 0.2), (0.62, 1.0))),
        (_line((0.15, 0.0), (0.15, 0.52), (0.85, 0.52)), _line((0.8, 0.0), (0.8, 1.0))),
        (_line((0.95, 0.68), (0.08, 0.68), (0.68, 0.0), (0.68, 1.0)),),
        (_curve((0.42, 0.0), (0.22, 0.3), (0.1, 0.62), (0.45, 0.66), (0.92, 0.56)),
         _line((0.66, 0.35), (0.55, 1.0))),
        (_curve((0.2, 0.05), (0.16, 0.4), (0.4, 0.52), (0.78, 0.4)),
         _line((0.82, 0.02), (0.74, 1.0))),
    ),
    5: (
        (_line((0.85, 0.02), (0.22, 0.02), (0.18, 0.45)),
         _curve((0.18, 0.45), (0.5, 0.36), (0.85, 0.55), (0.8, 0.86), (0.45, 1.0), (0.1, 0.9))),
        (_curve((0.88, 0.0), (0.4, 0.04), (0.25, 0.2), (0.3, 0.4), (0.7, 0.52), (0.8, 0.78),
                (0.5, 1.0), (0.12, 0.95)),),
        (_line((0.28, 0.06), (0.2, 0.48)),
         _curve((0.2, 0.48), (0.6, 0.4), (0.86, 0.66), (0.66, 0.97), (0.12, 0.96)),
         _line((0.28, 0.04), (0.92, 0.0))),
    ),
    6: (
        (_curve((0.72, 0.0), (0.35, 0.25), (0.12, 0.62), (0.25, 0.95), (0.6, 1.0), (0.86, 0.78),
                (0.7, 0.55), (0.4, 0.56), (0.15, 0.75)),),
        (_curve((0.45, 0.0), (0.2, 0.4), (0.15, 0.8), (0.45, 1.0), (0.8, 0.88), (0.75, 0.6),
                (0.45, 0.55), (0.2, 0.7)),),
        (_curve((0.85, 0.1), (0.55, 0.0), (0.25, 0.22), (0.12, 0.65), (0.3, 0.97), (0.7, 0.96),
                (0.86, 0.7), (0.6, 0.48), (0.2, 0.62)),),
    ),
    7: (
        (_line((0.1, 0.02), (0.88, 0.02), (0.4, 1.0)),),
        (_line((0.1, 0.02), (0.88, 0.02), (0.4, 1.0)), _line((0.3, 0.5), (0.82, 0.48))),
        (_curve((0.08, 0.12), (0.45, 0.02), (0.85, 0.06)),
         _curve((0.85, 0.06), (0.6, 0.45), (0.48, 1.0))),
        (_line((0.12, 0.2), (0.15, 0.02), (0.88, 0.02), (0.55, 0.5), (0.48, 1.0)),),
        (_curve((0.1, 0.08), (0.5, 0.04), (0.85, 0.05), (0.72, 0.4), (0.45, 1.0)),
         _line((0.35, 0.55), (0.9, 0.46))),
    ),
    8: (
        (_curve((0.78, 0.12), (0.45, 0.0), (0.2, 0.2), (0.5, 0.46), (0.85, 0.75), (0.5, 1.0),
                (0.15, 0.78), (0.5, 0.46), (0.8, 0.2), (0.7, 0.06)),),
        (_curve((0.5, 0.0), (0.25, 0.22), (0.5, 0.46), (0.75, 0.22), (0.5, 0.0)),
         _curve((0.5, 0.46), (0.15, 0.74), (0.5, 1.0), (0.85, 0.74), (0.5, 0.46))),
        (_curve((0.8, 0.05), (0.35, 0.1), (0.3, 0.34), (0.7, 0.62), (0.72, 0.92), (0.35, 0.98),
                (0.25, 0.7), (0.68, 0.38), (0.85, 0.08)),),
    ),
    9: (
        (_curve((0.8, 0.2), (0.5, 0.0), (0.18, 0.15), (0.2, 0.45), (0.55, 0.5), (0.8, 0.2)),
         _line((0.8, 0.2), (0.72, 1.0))),
        (_curve((0.82, 0.12), (0.45, 0.0), (0.15, 0.25), (0.4, 0.5), (0.78, 0.3), (0.82, 0.12),
                (0.8, 0.6), (0.6, 0.95), (0.2, 0.95)),),
        (_curve((0.78, 0.1), (0.4, 0.02), (0.2, 0.28), (0.45, 0.46), (0.75, 0.25)),
         _curve((0.78, 0.1), (0.7, 0.55), (0.4, 1.0))),
        (_curve((0.75, 0.25), (0.5, 0.02), (0.2, 0.2), (0.35, 0.5), (0.7, 0.4), (0.8, 0.1)),
         _curve((0.8, 0.1), (0.85, 0.6), (0.7, 0.92), (0.35, 1.0), (0.12, 0.9))),
    ),
}  # fmt: skip


def catmull_rom(points_P2: np.ndarray) -> np.ndarray:
    """Return a curve through every point, 8 samples per segment."""
    padded = np.concatenate(
        [2 * points_P2[:1] - points_P2[1:2], points_P2, 2 * points_P2[-1:] - points_P2[-2:-1]]
    )
    before, start, end, after = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    t = np.linspace(0.0, 1.0, 8, endpoint=False)[None, :, None]
    before, start, end, after = (a[:, None, :] for a in (before, start, end, after))
    curve = 0.5 * (
        2 * start
        + (end - before) * t
        + (2 * before - 5 * start + 4 * end - after) * t**2
        + (3 * start - before - 3 * end + after) * t**3
    )
    return np.concatenate([curve.reshape(-1, 2), points_P2[-1:]])


def wander(generator: np.random.Generator, points_P2: np.ndarray) -> np.ndarray:
    """Bend the whole plane by a low-frequency wave, as an unsteady hand does."""
    phase = generator.uniform(0, 2 * np.pi, (2, 2))
    size = generator.uniform(0.0, 0.05, (2, 1))
    wave = np.sin(2 * np.pi * points_P2.T[::-1] * generator.uniform(0.4, 1.0) + phase[:, :1])
    return points_P2 + (size * wave).T


def digit_mask(generator: np.random.Generator, digit: int) -> Image.Image:
    """Draw one handwritten digit, white on black, on a CANVAS x CANVAS greyscale picture.

    The drawing varies the template, each control point, the width, slant and turn, and the pen's
    thickness.
    """
    variants = TEMPLATES[digit]
    strokes = variants[generator.integers(len(variants))]
    width = generator.uniform(0.5, 0.95)
    slant, turn = generator.normal(0.0, 0.18), generator.normal(0.0, 0.08)
    jitter = generator.uniform(0.01, 0.045)
    pen = generator.uniform(0.07, 0.19) * CANVAS * 0.7
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = matrix @ np.array([[width, -slant], [0.0, 1.0]])
    image = Image.new("L", (CANVAS, CANVAS))
    draw = ImageDraw.Draw(image)
    for stroke in strokes:
        points_P2 = np.array(stroke.points)
        points_P2 = points_P2 + generator.normal(0.0, jitter, points_P2.shape)
        path_P2 = catmull_rom(points_P2) if stroke.smooth else points_P2
        if not stroke.smooth:  # straight strokes bow a little too
            path_P2 = np.concatenate(
                [np.linspace(a, b, 6, endpoint=False) for a, b in pairwise(path_P2)]
                + [path_P2[-1:]]
            )
        path_P2 = (wander(generator, path_P2) - 0.5) @ matrix.T * CANVAS * 0.7 + CANVAS / 2
        draw.line([tuple(p) for p in path_P2.tolist()], fill=255, width=round(pen), joint="curve")
        for x, y in (path_P2[0], path_P2[-1]):
            draw.ellipse((x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2), fill=255)
    return image
