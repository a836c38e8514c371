"""The sentences of the pages that hold measured numbers are those that the tables give."""

import re

import pytest

from tests.helpers import benchmark_claims, page_claims
from tests.helpers.command import ROOT

DOCS = ROOT / "docs"
BENCHMARKS = {f"benchmarks/{name}": claims for name, claims in benchmark_claims.CLAIMS.items()}
OTHERS = [
    page.relative_to(DOCS).with_suffix("").as_posix()
    for folder in ("concepts", "how_to", "start")
    for page in sorted((DOCS / folder).glob("*.md"))
]
FENCED = re.compile(r"(?ms)^```.*?^```$")
# A measured number: it has a decimal, a unit or a factor.
MEASURED = re.compile(r"\d+\.\d+(?! *k)|\d+ (?:% (?:less|fewer|of its)|MiB|MB|ms\b|points|times\b)")
# On pages that hold settings too.
WITH_UNIT = re.compile(
    r"\d+ (?:MiB|GiB|MB|GB|ms|s|seconds|minutes|hours|[MGTP]FLOPs?|times (?:as|less|more|faster))\b"
)
# Numbers that are settings, published values or arithmetic, not measurements of a table.
SETTINGS = (
    "78.9 % needs",  # published
    "0.05 % of the weight gradients",  # the density 5e-4
    "more than 4.3 standard errors",  # Student's t with two degrees of freedom
    "from 256 to 128 MiB",
    "chunks of 128 MiB",
    "raised to 1024 MiB",
    "target sparsity 0.9",
    "waits 120 seconds",  # Slurm's default
    "42 MB of simulated textile images",  # the size of a package
)


def prose(page: str) -> str:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    text = re.sub(r"!\[.*?\]\(.*?\)", "", FENCED.sub("", text))
    return re.sub(r"\s+", " ", text)


def left(page: str, claims: list[str], pattern: re.Pattern[str]) -> list[str]:
    """Return the numbers of a page that are neither in its claims nor settings."""
    text = prose(page)
    for claim in claims:
        assert claim in text, claim
        text = text.replace(claim, "")
    for setting in SETTINGS:
        text = text.replace(setting, "")
    return [text[max(0, found.start() - 60) : found.end() + 30] for found in pattern.finditer(text)]


@pytest.mark.parametrize("page", BENCHMARKS)
def test_every_measured_number_is_that_of_the_tables(page: str):
    assert not left(page, BENCHMARKS[page](), MEASURED)


@pytest.mark.parametrize("page", OTHERS)
def test_every_number_with_a_unit_is_computed(page: str):
    """From tables, from the datasets' cards, or from the limits of the program."""
    claims = page_claims.CLAIMS.get(page)
    assert not left(page, claims() if claims else [], WITH_UNIT)


def test_every_page_is_checked():
    pages = {page.stem for page in (DOCS / "benchmarks").glob("*.md")}
    assert pages == {*benchmark_claims.CLAIMS, "index", "backbones"}
    assert set(page_claims.CLAIMS) <= set(OTHERS)
    for page in ("index", "backbones"):
        found = MEASURED.findall(
            prose(f"benchmarks/{page}").partition("## How the table was made")[0]
        )
        assert [*filter(None, found)] in ([], ["78.9"]), page
