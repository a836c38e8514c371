"""The built site in a browser and as HTML: nothing from a network, headings, keyboard, contrast."""

import html
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
# The rules of WCAG A and AA. "preload" would fetch the style sheets again, which a disk refuses.
RULES = {"preload": False, "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}
# A page of each kind: text, tables, formulas, outputs, docstrings, a command.
PAGES = (
    "index.html",
    "concepts/so.html",
    "how_to/own_images.html",
    "methods/so.html",
    "benchmarks/methods.html",
    "api/optimizer.html",
    "reference/commands/predict.html",
)


class Seen(HTMLParser):
    """The headings of a page in order, and the addresses that it loads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.headings: list[int] = []
        self.loaded: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        given = dict(attrs)
        is_link = tag == "link" and given.get("rel") not in ("canonical", "next", "prev")
        address = given.get("href") if is_link else given.get("src")
        if tag != "a" and address:
            self.loaded.append(address)


def pages_of(site: Path) -> list[Path]:
    """Return the pages that mkdocs made. A report in the gallery is a page of the program."""
    found = [page for page in sorted(site.rglob("*.html")) if page.name != "404.html"]
    return [page for page in found if "md-content" in page.read_text(encoding="utf-8")]


def test_headings_are_in_order_with_one_of_the_first_level(site: Path):
    wrong = {}
    for page in pages_of(site):
        levels = Seen(page).headings
        steps = [after - before for before, after in pairwise(levels)]
        if levels[:1] != [1] or levels.count(1) != 1 or max(steps, default=0) > 1:
            wrong[page.relative_to(site).as_posix()] = levels
    assert wrong == {}


def test_the_title_of_a_page_is_its_first_heading(site: Path):
    """Also where a comment is before the heading."""
    wrong = []
    for page in pages_of(site):
        text = page.read_text(encoding="utf-8")
        title = re.search(r"<title>(.*?)</title>", text, re.DOTALL)
        heading = re.search(r"<h1[^>]*>(.*?)(?:<a class=\"headerlink|</h1>)", text, re.DOTALL)
        assert title, page
        assert heading, page
        shown = html.unescape(re.sub(r"<[^>]+>", "", heading[1])).strip()
        if html.unescape(title[1]) != f"{shown} - so_clip":
            wrong.append((page.relative_to(site).as_posix(), title[1], shown))
    assert wrong == []


def test_first_pages_rank_before_lists_in_the_search(site: Path):
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    boosts = {entry["location"]: entry.get("boost", 1) for entry in index["docs"]}
    assert boosts["start/install.html"] == boosts["questions.html"] == 2
    assert boosts["methods/so.html"] == boosts["reference/options.html"] == 0.5
    assert boosts["concepts/so.html"] == 1


def test_no_page_loads_from_another_host(site: Path):
    assert len(pages_of(site)) > 100
    for page in site.rglob("*.html"):
        if page.name != "404.html":
            outside = [url for url in Seen(page).loaded if re.match(r"(\w+:)?//", url)]
            assert outside == [], page
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", text), sheet


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_accessible(site: Path, open_page: Any, scheme: str):
    """Axe finds no problem: contrast, names of controls, structure. No request leaves the disk."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = []
    for name in PAGES:
        tab = open_page(site / name, scheme=scheme)
        tab.wait_for_selector(".md-content h1")
        for problem in axe.run(tab, options=RULES).response["violations"]:
            nodes = [node["html"][:120] for node in problem["nodes"][:3]]
            found.append((name, problem["id"], len(problem["nodes"]), nodes))
        tab.close()
    assert found == []


def test_no_page_scrolls_sideways_on_a_phone(site: Path, open_page: Any):
    wide = {}
    for name in PAGES:
        tab = open_page(site / name, width=390)
        tab.wait_for_selector(".md-content h1")
        width = tab.evaluate("document.documentElement.scrollWidth")
        if width > 390:
            wide[name] = width
        tab.close()
    assert wide == {}


def test_the_keyboard_reaches_the_text_and_the_search(site: Path, open_page: Any):
    """The first Tab shows the skip link; a slash opens the search, and it finds a command."""
    tab = open_page(site / "index.html")
    tab.wait_for_selector(".md-content h1")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.classList.contains('md-skip')")
    tab.wait_for_function("getComputedStyle(document.activeElement).opacity == 1")
    tab.keyboard.press("/")
    tab.keyboard.type("so_clip predict")
    tab.wait_for_selector(".md-search-result__item")
    first = tab.locator(".md-search-result__link").first.get_attribute("href")
    assert "/reference/commands/predict.html" in first
    tab.keyboard.press("ArrowDown")
    assert tab.evaluate("document.activeElement.classList.contains('md-search-result__link')")


def test_the_menu_of_a_phone_opens_with_the_keyboard(site: Path, open_page: Any):
    tab = open_page(site / "concepts" / "so.html", width=390)
    tab.wait_for_selector(".md-content h1")
    for _ in range(6):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.htmlFor") == "__drawer":
            break
    tab.keyboard.press("Enter")
    tab.wait_for_function("document.getElementById('__drawer').checked")
    assert tab.locator(".md-sidebar--primary").is_visible()
