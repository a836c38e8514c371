"""The pages that the build makes: from root files, from notebooks and from the program."""

from pathlib import Path

from scripts.docs_site import citation

ROOT = Path(__file__).resolve().parents[2]
# Root files that are also pages.
ROOT_FILES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
# Files outside docs/ that are checked as pages are.
CHECKED_FILES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "results/README.md")


def notebooks(docs: Path) -> list[str]:
    """Return the pages of notebooks, relative to docs/."""
    return [f"notebooks/{path.stem}.md" for path in sorted((docs / "notebooks").glob("*.ipynb"))]


def of_root(text: str) -> str:
    """Return the Markdown of a root file with links that hold in docs/."""
    for name, uri in ROOT_FILES.items():
        text = text.replace(f"]({name}", f"]({uri}")
    return text.replace("](docs/", "](")


def pages(docs: Path) -> dict[str, str]:
    """Return the Markdown of all pages that are made, by their path relative to docs/."""
    made = {"reference/command_line.md": "# Command line\n", "reference/options.md": "# Options\n"}
    for name, uri in ROOT_FILES.items():
        path = ROOT / name
        made[uri] = of_root(path.read_text(encoding="utf-8"))
    made["citation.md"] = citation.page(ROOT / "CITATION.cff")
    for uri in notebooks(docs):
        made[uri] = f"# {Path(uri).stem}\n"
    return made
