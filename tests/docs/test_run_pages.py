"""Every page does what it says: its blocks run in order, and its outputs are those of the run."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.docs_site import warm_python
from scripts.docs_site.blocks import blocks
from scripts.docs_site.made_pages import CHECKED_FILES, pages
from scripts.docs_site.run_page import EXCEPTIONS, check, run
from tests.helpers.command import ROOT
from tests.helpers.page_home import write_home
from tests.helpers.page_sources import serving

DOCS = ROOT / "docs"
PAGES = [*(ROOT / name for name in CHECKED_FILES), *sorted(DOCS.rglob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
MOST_LINES = 120


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with warm_python.running(tmp_path_factory.mktemp("warm")) as place:
        yield place


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with serving(tmp_path_factory.mktemp("sources") / "made") as folder:
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_blocks_of_a_page_run_in_order(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    page, scratch = ROOT / name, tmp_path / "scratch"
    if not blocks(page):
        return
    scratch.mkdir()
    home = write_home(tmp_path / "home")
    places = [request.getfixturevalue(fixture) for fixture in ("warm", "sources")]
    check(run(page, home, scratch, *places), page)


def test_every_exception_is_used() -> None:
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in NAMES)
    assert not [command for command in EXCEPTIONS if command not in text]
    assert all(EXCEPTIONS.values())


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("docs/")])
def test_a_page_is_short(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    shown = re.sub(r"(?ms)^```table$.*?^```$", "", text)  # a table is short, its description not
    assert len(shown.splitlines()) <= MOST_LINES


def _text(page: Path) -> str:
    """Return the Markdown of a page, also of one that the site's build makes."""
    made = page.relative_to(DOCS).as_posix() if page.is_relative_to(DOCS) else ""
    return pages(DOCS)[made] if not page.exists() else page.read_text(encoding="utf-8")


def _links(page: Path) -> set[Path]:
    """Return the pages of this repository to which a page leads."""
    targets = re.findall(r"\]\(([^)\s#]+)", _text(page))
    return {(page.parent / target).resolve() for target in targets if "//" not in target}


def _questions() -> list[tuple[str, Path]]:
    """Return the questions of the list with the page of each answer."""
    page = DOCS / "questions.md"
    text = re.sub(r"\s+", " ", page.read_text(encoding="utf-8"))
    found = []
    for question, answer in re.findall(r"\*\*([^*]+\?)\*\*(.*?)(?=\*\*[^*]+\?\*\*|$)", text):
        places = re.findall(r"\]\(([^)\s#]+)", answer)
        assert places, question
        found += [(question, (page.parent / place).resolve()) for place in places]
    return found


def test_twenty_everyday_questions_have_a_page() -> None:
    """The strict build of the site holds the anchors."""
    questions = _questions()
    assert len({question for question, _ in questions}) >= 20
    for question, page in questions:
        assert page.is_file() or page.relative_to(DOCS).as_posix() in pages(DOCS), question


def test_every_answer_is_within_two_clicks_of_the_first_page() -> None:
    first = DOCS / "index.md"
    one = _links(first)
    two = one.union(*(_links(near) for near in one if near.suffix == ".md"))
    assert [question for question, page in _questions() if page not in two] == []
