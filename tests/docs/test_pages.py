"""README.md, docs/ and results/README.md agree with the code: commands, options, links, paths."""

import re
from pathlib import Path

import pytest

from scripts.docs_site.blocks import blocks, lines, links, read, without_blocks
from scripts.docs_site.checks import wrong_names
from scripts.docs_site.made_pages import pages
from so_clip.version import RESULTS_VERSION
from tests.helpers.command import ROOT

README, DOCS = ROOT / "README.md", ROOT / "docs"
ALL_PAGES = [README, *sorted(DOCS.rglob("*.md")), ROOT / "results" / "README.md"]
NAMES = [page.relative_to(ROOT).as_posix() for page in ALL_PAGES]


@pytest.fixture(scope="module")
def made() -> set[Path]:
    return {(DOCS / uri).resolve() for uri in pages(DOCS)}


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_to_a_file(name: str, made: set[Path]):
    page = ROOT / name
    targets = {link: (page.parent / link.partition("#")[0]).resolve() for link in links(page)}
    assert not [link for link, to in targets.items() if not to.exists() and to not in made]


@pytest.mark.parametrize("name", NAMES)
def test_a_page_names_only_what_exists(name: str):
    """Options, flags, commands, choices, targets, extras, files; the site's build checks it too."""
    assert list(map(str, wrong_names(read(ROOT / name)))) == []


@pytest.mark.parametrize("name", [name for name in NAMES if name != "docs/start/install.md"])
def test_a_page_installs_from_a_copy_of_the_repository(name: str):
    """The package index does not have so_clip yet, so its name there would fail."""
    text = (ROOT / name).read_text(encoding="utf-8")
    assert re.findall(r"pip3?\s+install\b[^`\n]*\bso[-_]clip\b[^`\n]*", text) == []


def test_every_picture_says_what_is_seen():
    texts = {page.relative_to(ROOT).as_posix(): read(page) for page in ALL_PAGES}
    texts |= {name: text for name, text in pages(DOCS).items() if isinstance(text, str)}
    found = [
        (name, alt)
        for name, text in texts.items()
        for alt in re.findall(r"!\[(.*?)\]\(", without_blocks(text), re.DOTALL)
    ]
    assert {"notebooks/tour.md", "docs/gallery/index.md"} <= {name for name, _ in found}
    assert [name for name, alt in found if len(alt.split()) < 3] == []


def test_every_fenced_block_is_known():
    """A block without a kind is output or a folder; another is a command, a file or Python."""
    for page in ALL_PAGES:
        text = page.read_text(encoding="utf-8")
        found = blocks(page)
        assert text.count("```") == 2 * len(found), page
        assert {block.kind for block in found} <= {
            "",
            "sh",
            "python",
            "json",
            "csv",
            "text",
            "yaml",
            "table",
            "math",
            "output",
            "facts",
        }
        files = [block for block in found if block.kind in ("json", "csv", "text", "yaml")]
        assert all(block.file for block in files), page


def test_the_readme_is_short_and_starts_with_two_commands():
    text = README.read_text(encoding="utf-8").splitlines()
    assert len(text) <= 100
    first = next(block for block in blocks(README) if block.kind == "sh")
    assert lines(first) == [["make", "demo"], ["make", "test"]]


def test_the_results_version_in_the_pages_is_that_of_the_code():
    assert (
        f"It is {RESULTS_VERSION} since"
        in (ROOT / "docs" / "reference" / "fingerprint.md").read_text()
    )
