"""CITATION.cff, CHANGELOG.md and LICENSE agree with the package."""

import re
import tomllib
from typing import Any

import yaml

from so_clip.version import RESULTS_VERSION, __version__
from tests.helpers.command import ROOT, call

CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def citation() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_the_citation_has_the_keys_of_the_citation_file_format() -> None:
    cited = citation()
    assert cited["cff-version"] == "1.2.0"
    assert cited["type"] == "software"
    assert {"message", "title", "authors", "abstract", "keywords", "references"} <= cited.keys()
    for work in (cited, *cited["references"]):
        assert {"title", "type", "authors"} <= work.keys()
        assert all(
            {"name"} <= who.keys() or {"family-names"} <= who.keys() for who in work["authors"]
        )


def test_the_citation_is_that_of_the_package() -> None:
    cited = citation()
    assert cited["version"] == __version__
    assert cited["license"] == PROJECT["license"]
    assert [{"name": who["name"]} for who in cited["authors"]] == PROJECT["authors"]
    assert cited["title"].startswith("so_clip")


def test_the_papers_are_those_that_the_methods_name() -> None:
    for work in citation()["references"]:
        number = work["url"].removeprefix("https://arxiv.org/abs/")
        assert work["identifiers"] == [{"type": "other", "value": f"arXiv:{number}"}]
        named = [
            file.stem
            for file in (ROOT / "conf" / "method").glob("*.yaml")
            if f"arXiv {number}" in file.read_text(encoding="utf-8")
        ]
        assert named


def test_the_changelog_has_the_version_of_the_package_or_says_that_it_is_unreleased() -> None:
    headings = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", CHANGELOG, re.M)
    assert headings
    assert headings[0] == ("Unreleased", "") or headings[0][0] == __version__
    assert all(date for name, date in headings if name != "Unreleased")
    assert f"`RESULTS_VERSION` {RESULTS_VERSION}:" in CHANGELOG


def test_the_license_is_mit_by_the_authors() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["license"] == text.split()[0] == "MIT"
    assert PROJECT["license-files"] == ["LICENSE"]
    assert PROJECT["authors"][0]["name"].lower() in text.lower()


def test_the_program_says_its_version() -> None:
    assert call("--version").out == f"so_clip {__version__}\n"
