"""The pages on backbones: all groups are named, and the models of a field can be composed."""

import re

import pytest

from scripts.docs_site.blocks import inline_code
from so_clip.clip.loading.architecture_names import check_architecture
from so_clip.config.compose import choices, compose
from so_clip.config.parse import from_config
from tests.helpers.command import ROOT

PAGES = ROOT / "docs" / "how_to"
LINES = [
    code
    for code in inline_code(PAGES / "field_models.md")
    if re.match(r"backbone(\.architecture)?=(?!local-dir|$)", code)
]


def test_all_groups_are_on_the_page() -> None:
    text = (PAGES / "backbones.md").read_text(encoding="utf-8")
    assert all(f"`{path.stem}`" in text for path in choices("backbone"))


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("line", LINES)
def test_the_line_of_a_model_is_read(line: str) -> None:
    words = line.split()
    backbone = from_config(compose(words)).backbone
    check_architecture(backbone.architecture)
    given = dict(word.split("=", 1) for word in words)
    assert backbone.checkpoint == given.get("backbone.checkpoint")
    assert backbone.architecture == given.get("backbone.architecture", backbone.architecture)
    if backbone.checkpoint is None:
        assert backbone.architecture.startswith("hf-hub:")


def test_models_of_several_fields_have_lines() -> None:
    assert len(LINES) >= 9
