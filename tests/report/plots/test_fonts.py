"""Texts in every script: fonts are searched for the characters that are not in matplotlib's."""

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="needs the extra `report`")
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from so_clip.report.notices import collected
from so_clip.report.plots import write as plots
from so_clip.report.plots.fonts import FAMILY, families_for
from so_clip.report.read import read_runs
from tests.helpers.page_runs import write_run

# Two characters outside every plane with assigned letters, so that no font of a machine has them.
NOWHERE, RARE = "\U000f0001", "\U000f0002"


def _write_font(path: Path, family: str, characters: str) -> None:
    """Write a font with a triangle for each character."""
    names = [".notdef", *(f"u{ord(character):x}" for character in characters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap(dict(zip(map(ord, characters), names[1:], strict=True)))
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    pen.lineTo((500, 700))
    pen.lineTo((500, 0))
    pen.closePath()
    builder.setupGlyf({name: pen.glyph() for name in names})
    builder.setupHorizontalMetrics(dict.fromkeys(names, (600, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[str]:
    """A font on this machine with one rare character and two others."""
    path = tmp_path / "rare.ttf"
    _write_font(path, "Rare Sans", f"{RARE}\U000f0003猫")
    known = list(font_manager.fontManager.ttflist)
    font_manager.fontManager.addfont(path)
    yield "Rare Sans"
    font_manager.fontManager.ttflist[:] = known


def test_texts_in_the_own_font_need_no_other(installed):
    assert families_for(["SO, κ = 5e-4", "naïve \u200d\ufe0f\n"]) == ([FAMILY], [])


def test_missing_characters_come_from_a_font_of_the_machine(installed):
    assert families_for(["plain", f"class {RARE}"])[0] == [FAMILY, installed]


def test_characters_without_any_font_are_one_remark(installed):
    families, (remark,) = families_for([RARE, NOWHERE * 3])
    assert families == [FAMILY, installed]
    assert f"no font on this machine has {NOWHERE} (" in remark
    assert "Install a font" in remark


def test_plots_use_the_font_and_warn_once(installed, tmp_path, capsys, recwarn):
    for shots in (1, 4):
        folder = write_run(tmp_path / "runs", dataset=f"{RARE} {NOWHERE}", shots=shots)
        for file in ("history.csv", "curve.csv", "changed.csv"):
            (folder / file).unlink()
    drawn, remarks = plots.write(read_runs(tmp_path / "runs").frame, tmp_path)
    (plot,) = drawn
    assert f"'{FAMILY}', '{installed}'" in plot.svg
    assert len(remarks) == 1
    assert NOWHERE in remarks[0]
    assert not recwarn.list
    assert capsys.readouterr().err == ""


def test_warnings_and_messages_of_a_library_are_told_once(recwarn, capsys):
    remarks: list[str] = []
    with collected("library", remarks, ignored=("Glyph ",)):
        for _ in range(3):
            warnings.warn("this is\nslow", stacklevel=1)
            warnings.warn("Glyph 1 is missing", stacklevel=1)
            logging.getLogger("library.part").warning("no %s", "cache")
            logging.getLogger("library").info("fine")
    assert sorted(remarks) == ["library: no cache", "library: this is slow"]
    assert not recwarn.list
    assert capsys.readouterr().err == ""
