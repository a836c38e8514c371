"""The pictures of the benchmark pages are those that the script draws from results/tables."""

import re

import pytest

from scripts.docs_site.benchmark_figures import PICTURES, main
from scripts.docs_site.figure_style import FIGURES
from tests.helpers.command import ROOT


@pytest.mark.slow  # 8 seconds
def test_the_committed_pictures_are_those_of_the_tables(tmp_path):
    main([str(tmp_path)])
    drawn = sorted(tmp_path.iterdir())
    assert len(drawn) == 2 * len(PICTURES)
    for path in drawn:
        assert (FIGURES / path.name).read_bytes() == path.read_bytes(), path.name


def test_every_picture_is_on_a_page():
    pages = (ROOT / "docs" / "benchmarks").glob("*.md")
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    shown = set(re.findall(r"figures/(\w+)-light\.svg#only-light", text))
    assert shown == set(PICTURES)
    assert set(re.findall(r"figures/(\w+)-dark\.svg#only-dark", text)) == shown
