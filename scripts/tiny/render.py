"""The pictures of the pre-training: 32x32 RGB, with attributes for captions.

Five categories: digits (strokes and fonts), letters (fonts), plain shapes, textures, and patches
of land seen from above. A picture depends on (seed, index) alone, so a set can be rendered in any
order and by any number of processes.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from .strokes import CANVAS, digit_mask

SIZE = 32  # pixels per side of a finished picture
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = "abcdefghjkmnpqrstuvwxyz"  # without i, l and o, which look like digits
COLOURS = {
    "red": (215, 40, 40), "green": (40, 160, 60), "blue": (40, 80, 210), "yellow": (235, 215, 50),
    "orange": (240, 140, 30), "purple": (130, 50, 160), "pink": (245, 150, 190),
    "brown": (120, 75, 40), "cyan": (60, 200, 215), "white": (245, 245, 245),
    "gray": (128, 128, 128), "black": (12, 12, 12),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
TEXTURES = ("striped", "checkered", "dotted", "grid", "gradient", "noisy", "zigzag", "plain")
LANDS = ("forest", "pasture", "crop", "river", "lake", "highway", "residential", "industrial")
CATEGORIES = ("digit", "letter", "shape", "texture", "land")
SHARES = (0.52, 0.14, 0.12, 0.10, 0.12)  # share of the pictures in each category
# These shares decide how similar the pictures are to real digits. At 0.7 and 0.75 the model needs
# little adaptation (75% zero-shot); the present ones leave a gap for few-shot methods to close.
SCANNED_SHARE = 0.45  # share of digits and letters stored as by a 1990s scanner
HANDWRITTEN_SHARE = 0.65  # share of the digits; the others use a font


class Picture(NamedTuple):
    """A finished picture: pixels_HWC (uint8) and its attributes, "key:value" strings."""

    pixels_HWC: np.ndarray
    attributes: frozenset[str]


@lru_cache(maxsize=1)
def font_files() -> tuple[str, ...]:
    """Return the fonts in matplotlib's package that have letters and digits.

    Raises:
        RuntimeError: matplotlib is not installed (it is in the `pretrain` extra).
    """
    try:
        import matplotlib
    except ImportError as error:
        raise RuntimeError(
            "the fonts come with matplotlib: install the `pretrain` extra"
        ) from error
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    keep = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmr10", "cmb10", "cmss10", "cmtt10",
            "cmti10")  # fmt: skip
    files = sorted(p for p in folder.glob("*.ttf") if p.stem.startswith(keep))
    return tuple(str(p) for p in files if "Display" not in p.stem)


@lru_cache(maxsize=64)
def _font(name: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.truetype(name, 84) if name else ImageFont.load_default(84)


def glyph_mask(generator: np.random.Generator, character: str) -> Image.Image:
    """Draw a character of a random font, white on black, sheared, turned and made thicker."""
    names = ("", *font_files())
    image = Image.new("L", (CANVAS, CANVAS))
    ImageDraw.Draw(image).text(
        (CANVAS / 2, CANVAS / 2),
        character,
        fill=255,
        font=_font(names[generator.integers(len(names))]),
        anchor="mm",
    )
    if generator.random() < 0.4:
        image = image.filter(ImageFilter.MaxFilter(int(generator.choice([5, 9]))))
    slant, lean = generator.normal(0, 0.15), generator.normal(0, 0.08)
    half = CANVAS / 2
    matrix = (1.0, slant, -slant * half, lean, 1.0, -lean * half)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def fit(generator: np.random.Generator, mask: Image.Image, side: int, low: float) -> Image.Image:
    """Crop a mask to its ink and set it, at `low`..1 of the side, near the middle of a square."""
    box = mask.getbbox() or (0, 0, *mask.size)
    ink = mask.crop(box)
    scale = side * generator.uniform(low, 1.0) / max(ink.size)
    width, height = (max(1, round(n * scale)) for n in ink.size)
    ink = ink.resize((width, height), Image.Resampling.BOX)
    spare = np.array([side - width, side - height])
    left, top = np.clip(np.rint(spare / 2 + generator.normal(0, 0.15, 2) * spare), 0, spare)
    square = Image.new("L", (side, side))
    square.paste(ink, (int(left), int(top)))
    return square


def finish_mask(generator: np.random.Generator, mask: Image.Image) -> np.ndarray:
    """Bring a mask to SIZE x SIZE: sharp, blurred, or counted in 4x4 blocks and enlarged again.

    The last is how scanners of the 1990s stored digits (a 32x32 bitmap, its ink counted in blocks).
    """
    if generator.random() < SCANNED_SHARE:
        bitmap = fit(generator, mask, SIZE, 0.7).point(lambda v: 255 * (v > 127))
        cells = generator.choice([8, 8, 10, 12])
        small = bitmap.resize((cells, cells), Image.Resampling.BOX)
        image = small.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    else:
        image = fit(generator, mask, SIZE, 0.5)
        if generator.random() < 0.4:
            image = image.filter(ImageFilter.GaussianBlur(generator.uniform(0.4, 1.6)))
    return np.asarray(image, dtype=np.float32) / 255


def colour(generator: np.random.Generator, name: str) -> np.ndarray:
    """Return one shade of a named colour: RGB, 0..255."""
    return np.clip(np.array(COLOURS[name]) + generator.normal(0, 12, 3), 0, 255)


def paint(
    generator: np.random.Generator, mask_HW: np.ndarray, plain_share: float
) -> tuple[np.ndarray, set[str]]:
    """Colour a mask; `plain_share` of the results are white on black or black on white."""
    if generator.random() < plain_share:
        ink, ground = ("white", "black") if generator.random() < 0.75 else ("black", "white")
    else:
        ink, ground = generator.choice(list(COLOURS), 2, replace=False)
    mask_HW1 = mask_HW[:, :, None] * generator.uniform(0.8, 1.0)
    pixels = colour(generator, ink) * mask_HW1 + colour(generator, ground) * (1 - mask_HW1)
    return pixels, {f"ink:{ink}", f"ground:{ground}"}


def digit(generator: np.random.Generator) -> tuple[np.ndarray, set[str]]:
    """Draw a digit, by hand or from a font."""
    value = int(generator.integers(10))
    if generator.random() < HANDWRITTEN_SHARE:
        mask, style = digit_mask(generator, value), "handwritten"
    else:
        mask, style = glyph_mask(generator, str(value)), "printed"
    pixels, attributes = paint(generator, finish_mask(generator, mask), 0.7)
    return pixels, attributes | {f"name:{DIGIT_NAMES[value]}", f"style:{style}", "kind:digit"}


def letter(generator: np.random.Generator) -> tuple[np.ndarray, set[str]]:
    """Draw a letter, capital or small, from a font."""
    name = LETTERS[generator.integers(len(LETTERS))]
    mask = glyph_mask(generator, name.upper() if generator.random() < 0.5 else name)
    pixels, attributes = paint(generator, finish_mask(generator, mask), 0.5)
    return pixels, attributes | {f"name:letter {name}", "style:printed", "kind:letter"}


def _shape_points(name: str, radius: float) -> np.ndarray:
    turns = {"square": 4, "triangle": 3, "diamond": 4}
    if name in turns:
        first = np.pi / 4 if name == "square" else -np.pi / 2
        angles = first + np.arange(turns[name]) * 2 * np.pi / turns[name]
        return radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    if name == "star":
        angles = -np.pi / 2 + np.arange(10) * np.pi / 5
        reach = radius * np.where(np.arange(10) % 2 == 0, 1.0, 0.45)
        return np.stack([np.cos(angles), np.sin(angles)], 1) * reach[:, None]
    if name == "cross":
        a, b = radius, radius * 0.35
        return np.array([(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a), (-b, a),
                         (-b, b), (-a, b), (-a, -b), (-b, -b)])  # fmt: skip
    t = np.linspace(0, 2 * np.pi, 40)
    across = 16 * np.sin(t) ** 3
    down = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([across, down], 1) * radius / 17  # heart


def shape(generator: np.random.Generator) -> tuple[np.ndarray, set[str]]:
    """Draw a filled shape in one colour on another."""
    name = SHAPES[generator.integers(len(SHAPES))]
    radius = generator.uniform(0.2, 0.45) * CANVAS
    x, y = CANVAS / 2 + generator.normal(0, 0.06, 2) * CANVAS
    image = Image.new("L", (CANVAS, CANVAS))
    draw = ImageDraw.Draw(image)
    if name in ("circle", "ring"):
        box = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(box, outline=255, width=round(radius * 0.3), fill=255 * (name == "circle"))
    else:
        turn = generator.normal(0, 0.15)
        matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        points_P2 = _shape_points(name, radius) @ matrix.T + (x, y)
        draw.polygon([tuple(p) for p in points_P2.tolist()], fill=255)
    mask = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX), np.float32) / 255
    pixels, attributes = paint(generator, mask, 0.1)
    return pixels, attributes | {f"name:{name}", "kind:shape"}


def texture(generator: np.random.Generator) -> tuple[np.ndarray, set[str]]:
    """Fill the picture with a regular or a random pattern of two colours."""
    name = TEXTURES[generator.integers(len(TEXTURES))]
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    turn, period = generator.uniform(0, np.pi), generator.uniform(4, 12)
    u = (x * np.cos(turn) + y * np.sin(turn)) / period + generator.random()
    v = (y * np.cos(turn) - x * np.sin(turn)) / period + generator.random()
    masks = {
        "striped": lambda: u % 1 < 0.5,
        "checkered": lambda: (np.floor(2 * u) + np.floor(2 * v)) % 2 == 0,
        "dotted": lambda: (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.08,
        "grid": lambda: (u % 1 < 0.25) | (v % 1 < 0.25),
        "gradient": lambda: (u - u.min()) / (u.max() - u.min()),
        "noisy": lambda: generator.random((SIZE, SIZE)),
        "zigzag": lambda: (u + np.abs(v % 1 - 0.5)) % 1 < 0.5,
        "plain": lambda: np.zeros((SIZE, SIZE)),
    }
    pixels, attributes = paint(generator, masks[name]().astype(np.float32), 0.1)
    return pixels, attributes | {f"name:{name}", "kind:texture"}


def _smooth_noise(generator: np.random.Generator, cells: int) -> np.ndarray:
    small = Image.fromarray((generator.random((cells, cells)) * 255).astype(np.uint8))
    return np.asarray(small.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32) / 255


_GROUNDS = {
    "forest": (35, 65, 50), "pasture": (95, 125, 75), "crop": (150, 130, 95),
    "river": (90, 105, 80), "lake": (25, 45, 85), "highway": (110, 115, 100),
    "residential": (125, 120, 115), "industrial": (140, 140, 145),
}  # fmt: skip


def _shade(generator: np.random.Generator, centre: Any, spread: float) -> tuple[int, ...]:
    red_green_blue = np.clip(np.array(centre) + generator.normal(0, spread, 3), 0, 255)
    return tuple(int(v) for v in red_green_blue)


def land(generator: np.random.Generator) -> tuple[np.ndarray, set[str]]:
    """Paint a patch of land as a satellite sees it."""
    name = LANDS[generator.integers(len(LANDS))]
    ground = np.array(_GROUNDS[name]) + generator.normal(0, 14, 3)
    rough = {"lake": 8, "forest": 16}.get(name, 30)
    pixels = ground + rough * (_smooth_noise(generator, 5)[:, :, None] - 0.5)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    if name in ("river", "highway"):
        bend = 6 if name == "river" else 1.5
        middle = generator.uniform(6, 26, 4) if name == "river" else np.full(4, 16.0)
        across = middle + generator.normal(0, bend, 4)
        path = list(zip((-4.0, 8.0, 24.0, 36.0), across.tolist(), strict=True))
        width = int(generator.integers(3, 8) if name == "river" else generator.integers(1, 4))
        surface = (50, 75, 105) if name == "river" else (190, 188, 180)
        fill = _shade(generator, surface, 13)
        draw.line(path, fill=fill, width=width, joint="curve")
        corners = _shade(generator, ground, 3)
        turn = generator.uniform(0, 360)
        image = image.rotate(turn, Image.Resampling.BILINEAR, fillcolor=corners)
    if name == "crop":
        for edge in np.sort(generator.integers(0, SIZE, 4)):
            draw.rectangle((int(edge), 0, SIZE, SIZE), fill=_shade(generator, ground, 25))
        image = image.rotate(90 * int(generator.integers(4)))
    if name in ("residential", "industrial"):
        count, side = (45, 3) if name == "residential" else (9, 11)
        roofs = (165, 130, 120) if name == "residential" else (190, 195, 205)
        for x, y in generator.integers(-2, SIZE, (count, 2)):
            w, h = generator.integers(max(1, side // 2), side + 1, 2)
            roof = _shade(generator, roofs, 30)
            draw.rectangle((int(x), int(y), int(x + w), int(y + h)), fill=roof)
    noisy = np.asarray(image, np.float32) + generator.normal(0, 5, (SIZE, SIZE, 3))
    return noisy, {f"name:{name}", "kind:land"}


_DRAW = {"digit": digit, "letter": letter, "shape": shape, "texture": texture, "land": land}


def render(seed: int, index: int) -> Picture:
    """Render picture `index` of the set `seed`."""
    generator = np.random.default_rng([seed, index])
    category = CATEGORIES[generator.choice(len(CATEGORIES), p=SHARES)]
    pixels, attributes = _DRAW[category](generator)
    if generator.random() < 0.3:
        pixels = pixels + generator.normal(0, generator.uniform(2, 12), pixels.shape)
    return Picture(np.clip(pixels, 0, 255).astype(np.uint8), frozenset(attributes))


def all_attributes() -> list[str]:
    """Return every attribute that a picture may have, in a fixed order."""
    names = (*DIGIT_NAMES, *(f"letter {c}" for c in LETTERS), *SHAPES, *TEXTURES, *LANDS)
    return [
        *(f"name:{n}" for n in names),
        *(f"ink:{c}" for c in COLOURS),
        *(f"ground:{c}" for c in COLOURS),
        *(f"kind:{c}" for c in CATEGORIES),
        "style:handwritten",
        "style:printed",
    ]
