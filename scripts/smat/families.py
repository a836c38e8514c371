"""The families of rendered pictures: each is a dataset of its own."""

from collections.abc import Mapping
from dataclasses import dataclass

from scripts.smat import glyphs, patterns, shapes
from scripts.smat.canvas import Painter


@dataclass(frozen=True)
class Family:
    """Classes of one kind of picture.

    Attributes:
        title: the name for people.
        classes: how to draw one picture of each class, by class name, in label order.
        template: the prompt, with one {} for the class name.
        held_out: whether the family is kept for tests, so that nothing is trained on it.
    """

    title: str
    classes: Mapping[str, Painter]
    template: str = "a picture of {}."
    held_out: bool = False


def families() -> dict[str, Family]:
    """Return all families by the name of their dataset: those to train on, then those held out."""
    return {
        "latin_letters": _alphabet("Latin", 0x61, 0x7A),
        "greek_letters": _alphabet("Greek", 0x3B1, 0x3C9, leave_out="ς"),
        "cyrillic_letters": _alphabet("Cyrillic", 0x430, 0x44F),
        "armenian_letters": _alphabet("Armenian", 0x561, 0x586),
        "hebrew_letters": _alphabet("Hebrew", 0x5D0, 0x5EA, leave_out="ךםןףץ"),
        "math_symbols": Family("Operators", glyphs.symbols(glyphs.MATH), "the symbol {}."),
        "shapes": Family("Plane figures", shapes.shapes(), "a picture of a {}."),
        "polyominoes": Family("Polyominoes", shapes.polyominoes(), "a {}."),
        "arrows": Family("Directions of arrows", shapes.arrows(), "an {}."),
        "counts": Family("Numbers of dots", shapes.counts()),
        "curves": Family("Curves", shapes.curves(), "a drawing of a {}."),
        "stripes": Family("Stripes", patterns.stripes()),
        "textures": Family("Textures", patterns.textures(), "{} texture."),
        "colours": Family("Named colours", patterns.colours(), "a {} surface."),
        "georgian_letters": _alphabet("Georgian", 0x10D0, 0x10F0, held_out=True),
        "pictograms": Family("Pictograms", glyphs.symbols(glyphs.PICTOGRAMS), held_out=True),
        "clocks": Family("Clocks", shapes.clocks(), "a clock that shows {}.", held_out=True),
        "flags": Family("Flags", patterns.flags(), "the {}.", held_out=True),
        "scenes": Family("Two shapes in a relation", patterns.scenes(), held_out=True),
        "colour_pairs": Family(
            "Colours of a shape and its ground", patterns.colour_pairs(), held_out=True
        ),
    }


def _alphabet(
    script: str, first: int, last: int, leave_out: str = "", held_out: bool = False
) -> Family:
    """Return a family of letters; letters that exist only at the end of words are left out."""
    classes = glyphs.letters(script, first, last, leave_out)
    return Family(f"{script} letters", classes, "the {}.", held_out)
