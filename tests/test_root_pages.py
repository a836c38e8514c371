"""CITATION.cff, CHANGELOG.md and LICENSE are valid, and agree with the package."""

import re
import subprocess
import sys
import tomllib
from typing import Any

import pytest
import yaml

from so_clip.version import RESULTS_VERSION, __version__
from tests.helpers.command import ROOT, call

CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def citation() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("schema", "pattern"),
    [("citation-file-format", "CITATION.cff"), ("github-workflows", ".github/workflows/*.yml")],
)
def test_a_file_that_others_read_follows_its_schema(schema: str, pattern: str) -> None:
    pytest.importorskip("check_jsonschema", reason="has the schemas")
    files = sorted(ROOT.glob(pattern))
    assert files
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
    done = subprocess.run([*check, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


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
