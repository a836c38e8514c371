"""Fonts for texts in every script: matplotlib's own font first, then fonts of the machine."""

import unicodedata
from collections.abc import Iterable
from functools import cache
from typing import Any

FAMILY = "DejaVu Sans"
# A font whose glyphs only name the script of a character.
_LAST_RESORT = "Last Resort"
# The largest number of characters that a note names.
_NAMED = 8


def families_for(texts: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return font families that have the glyphs of all texts, and a remark if none has some.

    The fonts of the machine are only searched for characters that `FAMILY` does not have. Each
    step takes the font with the most characters that are still missing.
    """
    missing = _without_glyph(_visible(texts), _path_of(FAMILY))
    families = [FAMILY]
    candidates = _candidates() if missing else {}
    while missing:
        left = {name: _without_glyph(missing, path) for name, path in candidates.items()}
        best = min(left, key=lambda name: len(left[name]), default=None)
        if best is None or len(left[best]) == len(missing):
            break
        families.append(best)
        missing = left[best]
    return families, [_remark(missing)] if missing else []


def _visible(texts: Iterable[str]) -> set[str]:
    """Return the characters that need a glyph: no control, format or variation characters."""
    characters = set().union(*map(set, texts))
    return {
        character
        for character in characters
        if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zs", "Zl", "Zp")
        and not unicodedata.name(character, "").startswith("VARIATION SELECTOR")
    }


def _path_of(family: str) -> str:
    from matplotlib import font_manager

    return str(font_manager.findfont(family))


def _candidates() -> dict[str, str]:
    """Return the files of the machine's upright fonts by family, those of plain shape first."""
    from matplotlib import font_manager

    def order(font: Any) -> tuple[Any, ...]:
        name = font.name.lower()
        plain = "sans" in name or "gothic" in name
        special = any(word in name for word in ("serif", "mono", "display", "song", "ming"))
        return not plain, special, font.weight != 400, font.name, font.fname

    fonts = [font for font in font_manager.fontManager.ttflist if font.style == "normal"]
    found: dict[str, str] = {}
    for font in sorted(fonts, key=order):
        if font.name != FAMILY and not font.name.startswith(_LAST_RESORT):
            found.setdefault(font.name, font.fname)
    return found


@cache
def _font(path: str) -> Any:
    from matplotlib.ft2font import FT2Font

    try:
        return FT2Font(path)
    except (OSError, RuntimeError, NotImplementedError):  # removed, or a kind it cannot draw
        return None


def _without_glyph(characters: set[str], path: str) -> set[str]:
    font = _font(path)
    if font is None:
        return characters
    return {character for character in characters if not font.get_char_index(ord(character))}


def _remark(missing: set[str]) -> str:
    shown = sorted(missing)
    # The first word of a character's name is its script: CJK, ARABIC, DEVANAGARI, HANGUL.
    scripts = {unicodedata.name(character, "UNKNOWN").split()[0] for character in shown}
    more = f" and {len(shown) - _NAMED} more" if len(shown) > _NAMED else ""
    return (
        f"plots: no font on this machine has {' '.join(shown[:_NAMED])}{more} "
        f"({', '.join(sorted(scripts))}): the plots' files show boxes. Install a font with these "
        "characters, for example one of the Noto fonts, and repeat the report."
    )
