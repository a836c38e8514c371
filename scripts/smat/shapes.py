"""Single shapes: figures, polyominoes, arrows, clocks, curves and numbers of dots."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from PIL import Image, ImageDraw

from scripts.smat.canvas import (
    GRID,
    X_HW,
    Y_HW,
    Generator,
    Painter,
    Shape,
    contrast,
    ground,
    outline,
    over,
    painted,
    plane,
    turned,
)

NUMBERS = (
    *("one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)
WINDS = (
    *("north", "north-northeast", "northeast", "east-northeast"),
    *("east", "east-southeast", "southeast", "south-southeast"),
    *("south", "south-southwest", "southwest", "west-southwest"),
    *("west", "west-northwest", "northwest", "north-northwest"),
)
# The cells of each polyomino, row by row.
POLYOMINOES = {
    "pentomino F": ".XX/XX./.X.", "pentomino I": "XXXXX", "pentomino L": "XXXX/X...",
    "pentomino N": "XXX./..XX", "pentomino P": "XX/XX/X.", "pentomino T": "XXX/.X./.X.",
    "pentomino U": "X.X/XXX", "pentomino V": "X../X../XXX", "pentomino W": "X../XX./.XX",
    "pentomino X": ".X./XXX/.X.", "pentomino Y": "XXXX/.X..", "pentomino Z": "XX./.X./.XX",
    "tetromino I": "XXXX", "tetromino L": "XXX/X..", "tetromino O": "XX/XX",
    "tetromino S": ".XX/XX.", "tetromino T": "XXX/.X.", "tromino I": "XXX", "tromino L": "XX/X.",
}  # fmt: skip


def polygon(corners: int) -> Shape:
    """Return a regular polygon with a corner at the top."""

    def inside(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        step = 2 * np.pi / corners
        phase = (np.arctan2(y, x) + np.pi / 2) % step - step / 2
        return np.hypot(x, y) * np.cos(phase) < np.cos(step / 2)

    return inside


def star(points: int, inner: float) -> Shape:
    """Return a star with a point at the top, and its inner corners at the radius `inner`."""

    def inside(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        half = np.pi / points
        phase = np.abs((np.arctan2(y, x) + np.pi / 2 + half) % (2 * half) - half)
        cosine, sine = inner * np.cos(half), inner * np.sin(half)
        edge = sine / (sine * np.cos(phase) + (1 - cosine) * np.sin(phase))
        return np.hypot(x, y) < edge

    return inside


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    up = -1.25 * y + 0.1
    return (1.3 * x**2 + up**2 - 0.9) ** 3 < 2.2 * x**2 * up**3


SHAPES: Mapping[str, Shape] = {
    "circle": lambda x, y: x**2 + y**2 < 1,
    "triangle": polygon(3),
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.85,
    "pentagon": polygon(5),
    "hexagon": polygon(6),
    "star with four points": star(4, 0.4),
    "star with five points": star(5, 0.42),
    "star with eight points": star(8, 0.6),
    "plus sign": lambda x, y: np.minimum(abs(x), abs(y)) < 0.28,
    "ring": lambda x, y: abs(np.hypot(x, y) - 0.78) < 0.22,
    "diamond": lambda x, y: abs(x) / 0.62 + abs(y) < 1,
    "heart": _heart,
    "crescent": lambda x, y: (x**2 + y**2 < 1) & ((x - 0.5) ** 2 + y**2 > 0.72),
    "half circle": lambda x, y: (x**2 + (y - 0.5) ** 2 < 1) & (y < 0.5),
    "ellipse": lambda x, y: x**2 + (y / 0.5) ** 2 < 1,
    "rectangle": lambda x, y: (abs(x) < 1) & (abs(y) < 0.45),
    "trapezoid": lambda x, y: (abs(y) < 0.6) & (abs(x) < 0.7 + 0.45 * y),
    "parallelogram": lambda x, y: (abs(y) < 0.55) & (abs(x + 0.6 * y) < 0.65),
    "right triangle": lambda x, y: (x > -0.8) & (y < 0.8) & (y > x),
    "chevron": lambda x, y: (abs(y - 0.9 * abs(x) + 0.35) < 0.32) & (abs(x) < 0.95),
    "hourglass": lambda x, y: (abs(x) < 0.12 + 0.75 * abs(y)) & (abs(y) < 0.9),
    "flower": lambda x, y: np.hypot(x, y) < 0.68 + 0.32 * np.cos(5 * np.arctan2(y, x)),
    "gear": lambda x, y: (
        (np.hypot(x, y) < 0.8 + 0.2 * np.sign(np.sin(9 * np.arctan2(y, x))))
        & (np.hypot(x, y) > 0.3)
    ),
    "lens": lambda x, y: x**2 + (abs(y) + 0.75) ** 2 < 1.56,
}


def _shape(shape: Shape, generator: Generator) -> np.ndarray:
    """Paint a shape, filled or as an outline."""
    mask_HW = _within(shape, *plane(generator, turn=0.3))
    return painted(generator, outline(mask_HW) if generator.random() < 0.4 else mask_HW)


def _within(shape: Shape, x_HW: np.ndarray, y_HW: np.ndarray) -> np.ndarray:
    return shape(x_HW, y_HW) & (np.maximum(abs(x_HW), abs(y_HW)) < 1)


def _polyomino(cells: str, generator: Generator) -> np.ndarray:
    """Paint a polyomino in any of its four directions and two reflections."""
    filled_HW = np.array([[cell == "X" for cell in row] for row in cells.split("/")])
    filled_HW = np.rot90(filled_HW, int(generator.integers(4)))
    if generator.random() < 0.5:
        filled_HW = filled_HW[:, ::-1]
    rows, columns = filled_HW.shape
    side = 2 / max(rows, columns)
    x_HW, y_HW = plane(generator, turn=0.12, low=0.5, high=0.95)
    column, row = np.floor(x_HW / side + columns / 2), np.floor(y_HW / side + rows / 2)
    known = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    column, row = np.clip(column, 0, columns - 1), np.clip(row, 0, rows - 1)
    mask_HW = known & filled_HW[row.astype(int), column.astype(int)]
    return painted(generator, outline(mask_HW, 3) if generator.random() < 0.3 else mask_HW)


def _arrow(direction: int, generator: Generator) -> np.ndarray:
    """Paint an arrow that points in one of sixteen directions, counted from north."""
    x_HW, y_HW = plane(generator, turn=0.06, low=0.5, high=0.9)
    along, across = turned(x_HW, y_HW, direction * np.pi / 8 - np.pi / 2)
    shaft, head = generator.uniform(0.08, 0.2), generator.uniform(0.1, 0.4)
    mask_HW = (along > -1) & (along < head + 0.05) & (abs(across) < shaft)
    mask_HW |= (along > head) & (abs(across) < (1 - along) * 0.75)
    return painted(generator, mask_HW)


def _clock(hour: int, minute: int, generator: Generator) -> np.ndarray:
    """Paint a round clock with two hands, with or without marks of the hours."""
    x_HW, y_HW = plane(generator, turn=0.08, low=0.7, high=0.98)
    ink, face = contrast(generator)
    pixels_HWC = over(ground(generator, contrast(generator)[1]), x_HW**2 + y_HW**2 < 1, face)
    radius_HW = np.hypot(x_HW, y_HW)
    pixels_HWC = over(pixels_HWC, abs(radius_HW - 0.95) < 0.05, ink)
    if generator.random() < 0.5:
        angle_HW = (np.arctan2(y_HW, x_HW) + np.pi / 12) % (np.pi / 6) - np.pi / 12
        marks_HW = (abs(angle_HW) * radius_HW < 0.04) & (abs(radius_HW - 0.82) < 0.08)
        pixels_HWC = over(pixels_HWC, marks_HW, ink)
    hands = (((hour + minute / 60) / 12, 0.5, 0.11), (minute / 60, 0.8, 0.06))
    for turns, length, width in hands:
        along, across = turned(x_HW, y_HW, turns * 2 * np.pi - np.pi / 2)
        hand_HW = (along > -0.1) & (along < length) & (abs(across) < width)
        pixels_HWC = over(pixels_HWC, hand_HW, ink)
    return pixels_HWC


def _count(count: int, generator: Generator) -> np.ndarray:
    """Paint `count` discs or squares of one colour that do not touch."""
    radius = generator.uniform(0.12, min(0.3, 0.62 / np.sqrt(count)))
    square = generator.random() < 0.3
    centres: list[np.ndarray] = []
    while len(centres) < count:
        centre = generator.uniform(-0.95 + radius, 0.95 - radius, 2)
        if all(np.max(np.abs(centre - other)) > 2.2 * radius for other in centres):
            centres.append(centre)
        elif generator.random() < 0.02:  # the picture may be too full: begin again, smaller
            centres, radius = [], max(0.08, radius * 0.95)
    mask_HW = np.zeros((GRID, GRID), bool)
    for x, y in centres:
        across, down = abs(X_HW - x), abs(Y_HW - y)
        mask_HW |= (np.maximum(across, down) if square else np.hypot(across, down)) < radius
    return painted(generator, mask_HW)


# Points (x, y) of each curve for t in [-1, 1]; y points up here.
CURVES: Mapping[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "sine wave": lambda t: (t, 0.7 * np.sin(2 * np.pi * t)),
    "square wave": lambda t: (t, 0.7 * np.sign(np.sin(2 * np.pi * t + 0.01))),
    "sawtooth wave": lambda t: (t, 1.4 * ((1.5 * t) % 1) - 0.7),
    "triangle wave": lambda t: (t, 2.8 * abs((1.5 * t) % 1 - 0.5) - 0.7),
    "parabola": lambda t: (t, 1.8 * t**2 - 0.9),
    "cubic curve": lambda t: (t, 3 * t**3 - 1.8 * t),
    "rising line": lambda t: (t, 0.8 * t),
    "falling line": lambda t: (t, -0.8 * t),
    "bell curve": lambda t: (t, 1.6 * np.exp(-9 * t**2) - 0.8),
    "exponential curve": lambda t: (t, 1.8 * np.exp(3 * (t - 1)) - 0.9),
    "logarithm": lambda t: (t, 0.55 * np.log(t + 1.05) + 0.6),
    "step": lambda t: (t, 0.7 * np.sign(t)),
    "spiral": lambda t: (
        (t + 1) / 2 * np.cos(2.5 * np.pi * (t + 1)),
        (t + 1) / 2 * np.sin(2.5 * np.pi * (t + 1)),
    ),
    "figure eight": lambda t: (np.sin(np.pi * t), 0.8 * np.sin(2 * np.pi * t)),
    "damped wave": lambda t: (t, np.exp(-1.5 * (t + 1)) * np.cos(4 * np.pi * t)),
    "arch": lambda t: (t, np.sqrt(np.maximum(1 - t**2, 0)) - 0.5),
    "staircase": lambda t: (t, np.floor(2.5 * (t + 1)) / 2.5 - 0.8),
    "closed loop": lambda t: (0.8 * np.cos(np.pi * t), 0.8 * np.sin(np.pi * t)),
}


def _curve(name: str, generator: Generator) -> np.ndarray:
    """Paint a curve as one line, with or without axes."""
    x, y = CURVES[name](np.linspace(-1, 1, 90))
    size, angle = generator.uniform(0.6, 0.95), generator.uniform(-0.12, 0.12)
    shift_x, shift_y = generator.uniform(-1, 1, 2) * (1 - size)
    x, y = turned(x, -y * generator.uniform(0.7, 1.0), -angle)
    across, down = (((size * x + shift_x) + 1) * GRID / 2, ((size * y + shift_y) + 1) * GRID / 2)
    image = Image.new("L", (GRID, GRID))
    draw = ImageDraw.Draw(image)
    draw.line(
        list(zip(across.tolist(), down.tolist(), strict=True)),
        fill=255,
        width=int(generator.integers(2, 7)),
        joint="curve",
    )
    if generator.random() < 0.4:
        middle_x, middle_y = ((shift_x + 1) * GRID / 2, (shift_y + 1) * GRID / 2)
        draw.line([(0, middle_y), (GRID, middle_y)], fill=110)
        draw.line([(middle_x, 0), (middle_x, GRID)], fill=110)
    return painted(generator, np.asarray(image, np.float64) / 255)


def shapes() -> Mapping[str, Painter]:
    """Return the classes of plane figures."""
    return {name: partial(_shape, shape) for name, shape in SHAPES.items()}


def polyominoes() -> Mapping[str, Painter]:
    """Return the classes of connected squares."""
    return {name: partial(_polyomino, cells) for name, cells in POLYOMINOES.items()}


def arrows() -> Mapping[str, Painter]:
    """Return the classes of directions."""
    return {f"arrow to the {wind}": partial(_arrow, place) for place, wind in enumerate(WINDS)}


def clocks() -> Mapping[str, Painter]:
    """Return the classes of full and half hours."""
    full = {f"{name} o'clock": partial(_clock, hour, 0) for hour, name in enumerate(NUMBERS, 1)}
    half = {f"half past {name}": partial(_clock, hour, 30) for hour, name in enumerate(NUMBERS, 1)}
    return {**full, **half}


def counts() -> Mapping[str, Painter]:
    """Return the classes of one to twelve dots."""
    names = ("one dot", *(f"{name} dots" for name in NUMBERS[1:]))
    return {name: partial(_count, count) for count, name in enumerate(names, 1)}


def curves() -> Mapping[str, Painter]:
    """Return the classes of drawn curves."""
    return {name: partial(_curve, name) for name in CURVES}
