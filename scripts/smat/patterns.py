"""Patterns that fill the picture: stripes, textures, colours, flags, and scenes of two shapes."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import permutations

import numpy as np
from PIL import ImageColor

from scripts.smat.canvas import (
    GRID,
    X_HW,
    Y_HW,
    Generator,
    Painter,
    contrast,
    ground,
    jittered,
    over,
    painted,
    plane,
    soft_noise,
    turned,
)
from scripts.smat.shapes import SHAPES

COLOURS = (
    *("red", "maroon", "salmon", "orange", "gold", "yellow", "khaki", "olive"),
    *("lime", "green", "teal", "turquoise", "cyan", "skyblue", "blue", "navy"),
    *("purple", "violet", "magenta", "pink", "chocolate", "beige", "gray", "black"),
)
PAIRED = ("red", "green", "blue", "yellow", "white")
ANGLES = {
    "horizontal": 90, "steep rising": 30, "rising": 60,
    "vertical": 0, "steep falling": -30, "falling": -60,
}  # fmt: skip
WIDTHS = {"thin": 0.16, "medium": 0.3, "wide": 0.56}  # period, as a share of the picture
# Arrangement of each flag, and its colours. In a cross, the ground comes first.
FLAGS = {
    "flag of Austria": "rows red white red", "flag of Armenia": "rows red blue orange",
    "flag of Belgium": "columns black gold red", "flag of Bulgaria": "rows white green red",
    "flag of Chad": "columns navy gold red", "flag of Denmark": "cross red white",
    "flag of Estonia": "rows blue black white", "flag of Finland": "cross white navy",
    "flag of France": "columns blue white red", "flag of Gabon": "rows green gold blue",
    "flag of Germany": "rows black red gold", "flag of Guinea": "columns red gold green",
    "flag of Hungary": "rows red white green", "flag of Indonesia": "rows red white",
    "flag of Ireland": "columns green white orange", "flag of Italy": "columns green white red",
    "flag of Japan": "disc white red", "flag of Bangladesh": "disc green red",
    "flag of Lithuania": "rows gold green red", "flag of Mali": "columns green gold red",
    "flag of Nigeria": "columns green white green", "flag of Palau": "disc skyblue gold",
    "flag of Peru": "columns red white red", "flag of Poland": "rows white red",
    "flag of Sweden": "cross blue gold", "flag of Ukraine": "rows blue gold",
    "flag of Yemen": "rows red white black", "flag of Sierra Leone": "rows green white blue",
}  # fmt: skip
# Centre and size of the first and of the second shape.
RELATIONS = {
    "above": ((0.0, -0.5, 0.42), (0.0, 0.5, 0.42)),
    "left of": ((-0.5, 0.0, 0.42), (0.5, 0.0, 0.42)),
    "inside": ((0.0, 0.0, 0.38), (0.0, 0.0, 0.95)),
}


def rgb(name: str) -> np.ndarray:
    """Return a named colour of CSS."""
    return np.array(ImageColor.getrgb(name)[:3], np.float64)


def _stripes(degrees: float, period: float, generator: Generator) -> np.ndarray:
    angle = np.deg2rad(degrees + generator.uniform(-7, 7))
    along_HW, _ = turned(X_HW, Y_HW, angle)
    wave_HW = along_HW / (2 * period * generator.uniform(0.85, 1.15)) + generator.random()
    return painted(generator, wave_HW % 1 < generator.uniform(0.35, 0.65))


# Each texture, from coordinates u_HW and v_HW with one cell a unit.
Field = Callable[[np.ndarray, np.ndarray, Generator], np.ndarray]
TEXTURES: Mapping[str, Field] = {
    "checkers": lambda u, v, _: (np.floor(u) + np.floor(v)) % 2 == 0,
    "polka dots": lambda u, v, _: np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.3,
    "grid of lines": lambda u, v, _: (u % 1 < 0.2) | (v % 1 < 0.2),
    "bricks": lambda u, v, _: ((u / 2 + 0.5 * (np.floor(v) % 2)) % 1 > 0.1) & (v % 1 > 0.18),
    "zigzag": lambda u, v, _: (u + 1.2 * abs(v % 1 - 0.5)) % 1 < 0.5,
    "waves": lambda u, v, _: (u + 0.3 * np.sin(3 * v)) % 1 < 0.5,
    "ripples": lambda u, v, _: np.hypot(u, v) % 1 < 0.5,
    "rays": lambda u, v, _: np.sin(10 * np.arctan2(v, u)) > 0,
    "white noise": lambda u, _v, generator: generator.random(u.shape),
    "coarse noise": lambda _u, _v, generator: _blocks(generator, 8) > 0.5,
    "clouds": lambda _u, _v, generator: soft_noise(generator, 5),
    "fine clouds": lambda _u, _v, generator: soft_noise(generator, 12),
    "spots": lambda _u, _v, generator: soft_noise(generator, 10) > 0.66,
    "blobs": lambda _u, _v, generator: soft_noise(generator, 6) > 0.5,
    "marble": lambda u, _v, generator: 0.5 + 0.5 * np.sin(4 * u + 9 * soft_noise(generator, 5)),
    "weave": lambda u, v, _: np.where(
        (np.floor(u) + np.floor(v)) % 2 == 0, abs(u % 1 - 0.5) < 0.3, abs(v % 1 - 0.5) < 0.3
    ),
    "crosses": lambda u, v, _: np.minimum(abs(u % 1 - 0.5), abs(v % 1 - 0.5)) < (
        0.1 * (np.maximum(abs(u % 1 - 0.5), abs(v % 1 - 0.5)) < 0.38)
    ),
    "rings": lambda u, v, _: abs(np.hypot(u % 1 - 0.5, v % 1 - 0.5) - 0.32) < 0.1,
    "scales": lambda u, v, _: np.hypot((u + 0.5 * (np.floor(v) % 2)) % 1 - 0.5, v % 1) % 0.62 < 0.5,
    "dashes": lambda u, v, _: ((u + 0.5 * (np.floor(v) % 2)) % 1 < 0.6) & (v % 1 < 0.35),
    "triangles": lambda u, v, _: u % 1 < v % 1,
    "gradient": lambda u, _v, _g: (u - u.min()) / (u.max() - u.min()),
    "cracks": lambda _u, _v, generator: abs(soft_noise(generator, 7) - 0.5) < 0.06,
    "plain": lambda u, _v, _g: np.zeros(u.shape),
}  # fmt: skip


def _blocks(generator: Generator, cells: int) -> np.ndarray:
    return np.kron(generator.random((cells, cells)), np.ones((GRID // cells, GRID // cells)))


def _texture(field: Field, generator: Generator) -> np.ndarray:
    period = generator.uniform(0.2, 0.5)
    u_HW, v_HW = turned(X_HW / period, Y_HW / period, generator.uniform(0, 2 * np.pi))
    u_HW, v_HW = u_HW + generator.uniform(-1, 1), v_HW + generator.uniform(-1, 1)
    return painted(generator, field(u_HW, v_HW, generator).astype(np.float64))


def _colour(name: str, generator: Generator) -> np.ndarray:
    """Fill the picture with shades of one colour, evenly or in soft patches."""
    pixels_HWC = ground(generator, jittered(generator, rgb(name)))
    if generator.random() < 0.5:
        mask_HW = soft_noise(generator, int(generator.integers(3, 9))) * 0.35
        pixels_HWC = over(pixels_HWC, mask_HW, generator.choice([0.0, 255.0]) * np.ones(3))
    return pixels_HWC


def _pair(ink: str, below: str, generator: Generator) -> np.ndarray:
    """Paint a shape of one colour on another; the shape is no part of the class."""
    names = list(SHAPES)
    shape = SHAPES[names[generator.integers(len(names))]]
    x_HW, y_HW = plane(generator, turn=np.pi, low=0.5, high=0.9)
    mask_HW = shape(x_HW, y_HW) & (np.maximum(abs(x_HW), abs(y_HW)) < 1)
    pixels_HWC = ground(generator, jittered(generator, rgb(below)))
    return over(pixels_HWC, mask_HW, jittered(generator, rgb(ink)))


def _flag(design: str, generator: Generator) -> np.ndarray:
    """Paint a flag on a ground, slightly turned and waving."""
    kind, *names = design.split()
    colours = [jittered(generator, rgb(name)) for name in names]
    x_HW, y_HW = plane(generator, turn=0.15, low=0.75, high=1.0)
    y_HW = y_HW + generator.uniform(0, 0.12) * np.sin(3 * x_HW + generator.uniform(0, 6)) * 0.7
    aspect = generator.uniform(0.6, 0.75)
    cloth_HW = (abs(x_HW) < 1) & (abs(y_HW) < aspect)
    pixels_HWC = over(ground(generator, contrast(generator)[0]), cloth_HW, colours[0])
    parts = {
        "rows": (y_HW / aspect + 1) / 2 * len(colours),
        "columns": (x_HW + 1) / 2 * len(colours),
        "disc": 1.0 * (np.hypot(x_HW, y_HW) < 0.58 * aspect),
        "cross": 1.0 * (np.minimum(abs(x_HW + 0.25), abs(y_HW)) < 0.14),
    }
    for place, colour in enumerate(colours[1:], 1):
        pixels_HWC = over(pixels_HWC, cloth_HW & (parts[kind] >= place), colour)
    return pixels_HWC


def _scene(first: str, relation: str, second: str, generator: Generator) -> np.ndarray:
    """Paint two shapes of different colours in a relation; the second one is painted first."""
    ink, below = contrast(generator)
    pixels_HWC = ground(generator, below)
    other = jittered(generator, 255 - below, 40)
    x_HW, y_HW = plane(generator, turn=0.12, low=0.75, high=0.95)
    places = RELATIONS[relation]
    if relation == "inside":
        ink = below
    for name, (x, y, size), colour in (
        (second, places[1], other),
        (first, places[0], ink),
    ):
        own = size * generator.uniform(0.85, 1.0)
        move = generator.uniform(-0.08, 0.08, 2)
        shape = SHAPES[name]((x_HW - x - move[0]) / own, (y_HW - y - move[1]) / own)
        pixels_HWC = over(pixels_HWC, shape, colour)
    return pixels_HWC


def stripes() -> Mapping[str, Painter]:
    """Return the classes of stripes: six directions and three widths."""
    return {
        f"{width} {angle} stripes": partial(_stripes, degrees, period)
        for angle, degrees in ANGLES.items()
        for width, period in WIDTHS.items()
    }


def textures() -> Mapping[str, Painter]:
    """Return the classes of two-coloured textures."""
    return {name: partial(_texture, field) for name, field in TEXTURES.items()}


def colours() -> Mapping[str, Painter]:
    """Return the classes of named colours."""
    return {name: partial(_colour, name) for name in COLOURS}


def colour_pairs() -> Mapping[str, Painter]:
    """Return the classes of a shape's colour and its ground's colour."""
    return {f"{a} on {b}": partial(_pair, a, b) for a, b in permutations(PAIRED, 2)}


def flags() -> Mapping[str, Painter]:
    """Return the classes of national flags that are simple enough for 32 pixels."""
    return {name: partial(_flag, design) for name, design in FLAGS.items()}


def scenes() -> Mapping[str, Painter]:
    """Return the classes of two shapes in a relation."""
    return {
        f"{first} {relation} {second}": partial(_scene, first, relation, second)
        for relation in RELATIONS
        for first, second in permutations(("circle", "square", "triangle"), 2)
    }
