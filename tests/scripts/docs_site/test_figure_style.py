"""Pictures of the site: the same bytes each time, no background, colours that can be read."""

import re
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest

from scripts.docs_site.figure_style import DARK, LIGHT, WIDTH, Scheme, new_figure, save_pair
from so_clip.report.plots.style import luminance


def draw(scheme: Scheme) -> Any:
    figure = new_figure(height=2)
    axis = figure.subplots()
    axis.plot([1.23456, 2, 3], color=scheme.blue, label="κ = 0.00050")
    axis.legend()
    return figure


def contrast(one: str, two: str) -> float:
    """Return the contrast of WCAG 2.1 of two colours."""
    from matplotlib.colors import to_rgb

    darker, lighter = sorted(luminance(to_rgb(colour)) for colour in (one, two))
    return (lighter + 0.05) / (darker + 0.05)


def test_the_same_picture_has_the_same_bytes_whatever_the_reader_has_set(tmp_path):
    first = [path.read_bytes() for path in save_pair(draw, "x", tmp_path)]
    matplotlib.rcParams["font.size"] = 20
    try:
        assert [path.read_bytes() for path in save_pair(draw, "x", tmp_path)] == first
        assert matplotlib.rcParams["font.size"] == 20
    finally:
        matplotlib.rcdefaults()
    assert first[0] != first[1]


def test_a_picture_is_valid_xml_without_background_date_or_long_numbers(tmp_path):
    for path in save_pair(draw, "x", tmp_path):
        text = path.read_text(encoding="utf-8")
        root = ElementTree.fromstring(text)
        assert root.get("width") == f"{WIDTH * 72:.1f}pt".replace(".0pt", "pt")
        assert "κ = 0.00050" in text  # numbers of texts stay
        assert "DejaVu" not in text
        assert "metadata" not in text
        assert not re.search(r"<[^>]*\d\.\d{3}", text)
        assert not re.search(r"fill: (#ffffff|white)", text)


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_the_page(scheme):
    assert contrast(scheme.ink, scheme.paper) >= 7
    assert contrast(scheme.muted, scheme.paper) >= 4.5
    strong = [scheme.blue, scheme.vermillion, scheme.green, scheme.purple, scheme.indigo]
    assert all(contrast(hue, scheme.paper) >= 3 for hue in strong)
