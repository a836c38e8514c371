"""README.md as PyPI shows it: no link and no picture without a target."""

import re

import pytest

pytest.importorskip("hatchling", reason="needs the build backend")
from scripts.wheel_metadata import addresses, description, repository_address
from tests.helpers.command import ROOT

REPOSITORY = "https://example.org/someone/so_clip"
MADE = f"{REPOSITORY}/blob/v1.2"


@pytest.mark.parametrize(
    ("written", "plain", "linked"),
    [
        ("[Install](docs/a.md).", "Install.", f"[Install]({MADE}/docs/a.md)."),
        ("[paper](https://a.b/c)", "[paper](https://a.b/c)", "[paper](https://a.b/c)"),
        ("[`prepare`](docs/a.md#b)", "`prepare`", f"[`prepare`]({MADE}/docs/a.md#b)"),
        ("[below](#methods)", "below", f"[below]({MADE}/README.md#methods)"),
        ("[two\nlines](a.md)", "two\nlines", f"[two\nlines]({MADE}/a.md)"),
        ("![a plot](docs/a.png)", "", f"![a plot]({REPOSITORY}/raw/v1.2/docs/a.png)"),
        ("![a plot](https://a.b/c.png)",) + 2 * ("![a plot](https://a.b/c.png)",),
        (
            "a\n\n![](a.png)\n\n*what is\nseen*\n\n*b*\n",
            "a\n\n*b*\n",
            f"a\n\n![]({REPOSITORY}/raw/v1.2/a.png)\n\n*what is\nseen*\n\n*b*\n",
        ),
        ('<img alt="x" src="a.svg">', "", f'<img alt="x" src="{REPOSITORY}/raw/v1.2/a.svg">'),
        (
            '<picture>\n<source srcset="dark.svg"><img src="light.svg"></picture>',
            "",
            f'<picture>\n<source srcset="{REPOSITORY}/raw/v1.2/dark.svg">'
            f'<img src="{REPOSITORY}/raw/v1.2/light.svg"></picture>',
        ),
        (
            "```python\na[0](b)\n```\n[c](d)",
            "```python\na[0](b)\n```\nc",
            f"```python\na[0](b)\n```\n[c]({MADE}/d)",
        ),
        ("[![a](a.svg)](b.md)", "", f"[![a]({REPOSITORY}/raw/v1.2/a.svg)]({MADE}/b.md)"),
    ],
)
def test_links_and_pictures_are_absolute_or_gone(written: str, plain: str, linked: str) -> None:
    assert description(written, None, "v1.2") == plain
    assert description(written, REPOSITORY, "v1.2") == linked


def test_the_readme_has_absolute_links_only() -> None:
    written = (ROOT / "README.md").read_text(encoding="utf-8")
    for repository in (None, REPOSITORY):
        text = description(written, repository, "v1.2")
        targets = re.findall(r"\]\(([^)]*)\)|(?:src|srcset|href)=\"([^\"]*)\"", text)
        assert targets
        assert not [pair for pair in targets if not "".join(pair).startswith("https://")]
        assert re.findall(r"^```.*?^```", text, re.M | re.S) == re.findall(
            r"^```.*?^```", written, re.M | re.S
        )


def test_the_repository_is_the_one_of_the_workflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://example.org")
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    assert repository_address() is None
    assert addresses(None) == {}
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/so_clip")
    assert repository_address() == REPOSITORY
    assert addresses(REPOSITORY)["Source"] == REPOSITORY
    assert all(address.startswith(REPOSITORY) for address in addresses(REPOSITORY).values())


@pytest.mark.parametrize("name", ["", " ", "a", "a/b\n", "a/b\nClassifier: x", "a/b) c", "../b/c"])
def test_a_name_that_is_no_repository_gives_no_address(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://example.org/")
    monkeypatch.setenv("GITHUB_REPOSITORY", name)
    assert repository_address() is None
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/so_clip")
    assert repository_address() == REPOSITORY
