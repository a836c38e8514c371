"""The sentences of docs/benchmarks that hold measured numbers are those that the tables give."""

import re

import pytest

from tests.helpers.benchmark_claims import CLAIMS
from tests.helpers.command import ROOT

FOLDER = ROOT / "docs" / "benchmarks"
FENCED = re.compile(r"(?ms)^```.*?^```$")
# A measured number: it has a decimal, a unit or a factor.
MEASURED = re.compile(r"\d+\.\d+(?! *k)|\d+ (?:% (?:less|fewer|of its)|MiB|MB|ms\b|points|times\b)")
# Numbers that are settings, published values or arithmetic, not measurements of a table.
SETTINGS = (
    "78.9 % needs",  # published
    "0.05 % of the weight gradients",  # the density 5e-4
    "more than 4.3 standard errors",  # Student's t with two degrees of freedom
    "from 256 to 128 MiB",
    "chunks of 128 MiB",
    "raised to 1024 MiB",
    "which took 2.7 seconds a draw",
    "158.5 MiB less by the forecast",
    "target sparsity 0.9",
)


def prose(page: str) -> str:
    text = (FOLDER / f"{page}.md").read_text(encoding="utf-8")
    text = re.sub(r"!\[.*?\]\(.*?\)", "", FENCED.sub("", text))
    return re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("page", CLAIMS)
def test_every_measured_number_is_that_of_the_tables(page: str):
    text = prose(page)
    for claim in CLAIMS[page]():
        assert claim in text, claim
        text = text.replace(claim, "")
    for setting in SETTINGS:
        text = text.replace(setting, "")
    left = [
        text[max(0, found.start() - 60) : found.end() + 30] for found in MEASURED.finditer(text)
    ]
    assert not left


def test_every_page_is_checked():
    pages = {page.stem for page in FOLDER.glob("*.md")}
    assert pages == {*CLAIMS, "index", "backbones"}
    for page in ("index", "backbones"):
        found = MEASURED.findall(prose(page).partition("## How the table was made")[0])
        assert [*filter(None, found)] in ([], ["78.9"]), page
