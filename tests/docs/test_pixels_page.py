"""The table of pixels in docs/how_to/pixels.md holds for all published weights of open_clip."""

import re
from fnmatch import fnmatch

import open_clip

from so_clip.clip.pixels import named_preprocessing
from tests.helpers.command import ROOT

PAGE = ROOT / "docs" / "how_to" / "pixels.md"


def _rows() -> list[list[str]]:
    text = PAGE.read_text(encoding="utf-8").partition("\n## Pixels of published weights\n")[2]
    section = text.partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def _row_of(architecture: str, tag: str) -> list[str]:
    """Return the first row that names these weights; the last row names all others."""
    for row in _rows()[:-1]:
        for is_tag, pattern in re.findall("(tag )?`([^`]+)`", row[-1]):
            if fnmatch(tag if is_tag else architecture, pattern):
                return row
    return _rows()[-1]


def test_every_published_weight_has_the_pixels_of_its_row() -> None:
    used = []
    for architecture, tag in open_clip.list_pretrained():
        found = named_preprocessing(architecture, tag).record()
        row = _row_of(architecture, tag)
        assert row[:2] == [found["resize_mode"], found["interpolation"]], (architecture, tag)
        for cell, name in zip(row[2:4], ("mean", "std"), strict=True):
            assert [float(value) for value in cell.split(",")] == found[name], (architecture, tag)
        used.append(row)
    assert all(row in used for row in _rows())
