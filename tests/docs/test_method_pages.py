"""docs/methods/: a page for every method, with the same parts, and each page in the navigation."""

import re
from pathlib import Path

import pytest
import yaml

from so_clip.system.paths import CONF_DIR

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "methods"
METHODS = sorted(file.stem for file in (CONF_DIR / "method").glob("*.yaml"))
SECTIONS = (
    "What changes",
    "Formula",
    "Source",
    "Run it",
    "Defaults",
    "Limits",
    "Cost",
    "Related methods",
)
OPTIONAL = ("Options worth knowing",)


def page(method):
    return (PAGES / f"{method}.md").read_text(encoding="utf-8")


def section(method, title):
    parts = re.split(r"^## (.+)\n", page(method), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[title]


def test_every_method_has_a_page_and_every_page_is_a_method():
    assert sorted(file.stem for file in PAGES.glob("*.md") if file.stem != "index") == METHODS


@pytest.mark.parametrize("method", METHODS)
def test_a_page_has_all_parts_in_order(method):
    found = re.findall(r"^## (.+)$", page(method), re.MULTILINE)
    assert [title for title in found if title not in OPTIONAL] == [*SECTIONS]
    assert len(page(method).splitlines()) <= 120


@pytest.mark.parametrize("method", METHODS)
def test_a_page_has_the_title_of_the_method(method):
    title = yaml.safe_load((CONF_DIR / "method" / f"{method}.yaml").read_text())["method"]["title"]
    assert page(method).splitlines()[0] == f"# {title}"


@pytest.mark.parametrize("method", METHODS)
def test_a_formula_explains_its_symbols(method):
    formula = section(method, "Formula")
    assert formula.lstrip().startswith("```math\n")
    assert formula.rpartition("```")[2].strip()


@pytest.mark.parametrize("method", METHODS)
def test_a_page_runs_its_method(method):
    block = re.search(r"```sh\n(.+?)\n```", section(method, "Run it"), re.DOTALL)
    assert block
    assert f"method={method}" in block[1].split()
    assert all(line.startswith("python -m so_clip ") for line in block[1].splitlines())


@pytest.mark.parametrize("method", METHODS)
def test_a_page_shows_the_facts_of_its_method(method):
    for title, part in (("Defaults", "defaults"), ("Cost", "cost")):
        assert f"```facts\nmethod: {method}\npart: {part}\n```" in section(method, title)


@pytest.mark.parametrize("method", METHODS)
def test_a_page_names_the_papers_that_the_configuration_names(method):
    comment = (CONF_DIR / "method" / f"{method}.yaml").read_text(encoding="utf-8")
    for number in re.findall(r"arXiv (\d{4}\.\d{5})", comment):
        assert f"[arXiv {number}](https://arxiv.org/abs/{number})" in " ".join(page(method).split())


def test_the_index_and_the_navigation_have_every_page():
    index = (PAGES / "index.md").read_text(encoding="utf-8")
    assert sorted(set(re.findall(r"\]\((\w+)\.md\)", index))) == METHODS
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    shown = re.findall(r"^ +- methods/(\w+)\.md$", navigation, re.MULTILINE)
    assert sorted(shown) == sorted([*METHODS, "index"])
