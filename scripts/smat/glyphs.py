"""Letters and symbols of matplotlib's DejaVu fonts."""

import unicodedata
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from scripts.smat.canvas import GRID, Generator, Painter, painted

FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono"),
    *("DejaVuSerif", "DejaVuSerif-Bold"),
)
MATH = "∀∂∃∅∇∈∏∑∓√∞∠∥∧∩∪∫∴∷∼≈≠≡≤≫⊂⊕⊗⊞⊢⊥⋈"
PICTOGRAMS = "☀☁☂☃★☎☕☘☞☠☢☥☭☮☯☺☾♀♈♉♋♌♔♖♘♠♣♥♪♬♲♿⚀⚄⚓⚔⚖⚙✂✈"
# A symbol's ink is drawn at this height before it is placed, so that all symbols are equally large.
_HEIGHT = 56


def letters(script: str, first: int, last: int, leave_out: str = "") -> Mapping[str, Painter]:
    """Return the classes of an alphabet: one letter each, small or capital where both exist.

    Args:
        script: the English name of the alphabet.
        first, last: code points of its first and last small letter.
        leave_out: letters that are no class of their own.
    """
    characters = [chr(code) for code in range(first, last + 1) if chr(code) not in leave_out]
    return {f"{script} letter {_letter_name(small)}": _letter(small) for small in characters}


def symbols(characters: str) -> Mapping[str, Painter]:
    """Return one class for each character, with its name in Unicode."""
    return {
        unicodedata.name(character).lower().replace("-", " "): _letter(character)
        for character in characters
    }


def _letter_name(character: str) -> str:
    return unicodedata.name(character).lower().split("letter ")[1]


def _letter(small: str) -> Painter:
    capital = small.upper()
    # Georgian capitals are a recent addition that the fonts lack.
    shapes = [small, capital] if len(capital) == 1 and _fonts_with(capital) else [small]
    return partial(_paint, tuple(dict.fromkeys(shapes)))


def _paint(characters: tuple[str, ...], generator: Generator) -> np.ndarray:
    character = characters[generator.integers(len(characters))]
    fonts = _fonts_with(character)
    mask = _placed(generator, _ink(character, fonts[generator.integers(len(fonts))]))
    return painted(generator, np.asarray(mask, np.float64) / 255)


def _placed(generator: Generator, ink: Image.Image) -> Image.Image:
    """Turn, shear and scale the ink, and set it at a random place."""
    size = generator.uniform(0.5, 0.95) * GRID / max(ink.size)
    stretch = generator.uniform(0.85, 1.15)
    angle, slant = generator.uniform(-0.25, 0.25), generator.normal(0, 0.1)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    forward = turn @ np.array([[size * stretch, size * slant], [0.0, size / stretch]])
    room = np.maximum(GRID - np.abs(forward) @ np.array(ink.size), 0) / 2
    centre = GRID / 2 + generator.uniform(-1, 1, 2) * room
    back = np.linalg.inv(forward)
    offset = np.array(ink.size) / 2 - back @ centre
    matrix = (*back[0].tolist(), offset[0], *back[1].tolist(), offset[1])
    bilinear = Image.Resampling.BILINEAR
    return ink.transform((GRID, GRID), Image.Transform.AFFINE, matrix, bilinear)


@cache
def _ink(character: str, font: str) -> Image.Image:
    """Return the cropped ink of a character, white on black."""
    image = Image.new("L", (3 * _HEIGHT, 3 * _HEIGHT))
    middle = (1.5 * _HEIGHT, 1.5 * _HEIGHT)
    ImageDraw.Draw(image).text(middle, character, 255, ImageFont.truetype(font, _HEIGHT), "mm")
    return image.crop(image.getbbox())


@cache
def _fonts_with(character: str) -> tuple[str, ...]:
    """Return the font files that have the character."""
    return tuple(file for file, codes in _charmaps().items() if ord(character) in codes)


@lru_cache(maxsize=1)
def _charmaps() -> Mapping[str, Iterable[int]]:
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font

    folder = Path(get_data_path()) / "fonts" / "ttf"
    files = [str(folder / f"{name}.ttf") for name in FONTS]
    return {file: frozenset(FT2Font(file).get_charmap()) for file in files}
