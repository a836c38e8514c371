"""The gallery: its committed pages hold the planned runs, and the script makes such a page."""

import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from scripts import gallery
from tests.helpers.command import ROOT

PAGES = {page.name: page for page in gallery.PAGES}
INDEX = (ROOT / "docs" / "gallery" / "index.md").read_text(encoding="utf-8")


def runs_of(file: Path) -> int:
    """Return the number of runs in a report's page."""
    shown = re.search(r"<b>(\d+)</b>\s*runs", file.read_text(encoding="utf-8"))
    assert shown, file
    return int(shown[1])


@pytest.mark.parametrize("name", PAGES)
def test_a_committed_page_has_the_planned_runs_and_no_dead_links(name: str):
    file = gallery.OUT / f"{name}.html"
    assert runs_of(file) == PAGES[name].runs
    text = file.read_text(encoding="utf-8")
    assert not re.search(r'href="(?!#|data:)', text)
    assert len(text) < 1.5e6


@pytest.mark.parametrize("name", PAGES)
def test_the_gallery_shows_each_page_with_its_commands_and_pictures(name: str):
    assert "\n".join(PAGES[name].commands) in INDEX
    assert re.search(rf'<iframe src="{name}\.html" title="[^"]+" loading="lazy"', INDEX)
    for scheme in gallery.SCHEMES:
        assert f"({name}-{scheme}.png#only-{scheme})" in INDEX
        picture = (gallery.OUT / f"{name}-{scheme}.png").read_bytes()
        width, height = struct.unpack(">II", picture[16:24])
        assert (width, height) == tuple(round(1.5 * side) for side in gallery.BROWSER_SIZE)


@pytest.mark.slow
def test_the_script_makes_a_page_of_real_runs(tmp_path: Path):
    pytest.importorskip("conformal_clip_data", reason="needs the extra `textile`")
    planned = PAGES["photographs"].sweeps[0]
    sweep = re.sub(r"method=\S+ shots=\S+", "method=so shots=2", planned)
    assert sweep != planned
    index = gallery.run(replace(PAGES["photographs"], sweeps=(sweep,)), tmp_path, steps=1)
    assert runs_of(index) == 2
    assert len(list((tmp_path / "photographs").glob("*/*.jpg"))) == 3 * gallery.IMAGES_OF_A_CLASS
    text = index.read_text(encoding="utf-8")
    assert 'class="files"' in text
    assert 'class="files"' not in gallery.alone(text)
