"""The pages that the build makes: from root files, from notebooks and from the program."""

import re
from functools import cache
from pathlib import Path
from typing import Any

from scripts.docs_site import citation, command_pages, reference

ROOT = Path(__file__).resolve().parents[2]
# Root files that are also pages.
ROOT_FILES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
CITATION = "CITATION.cff"
# Files outside docs/ that are checked as pages are.
CHECKED_FILES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "results/README.md")


def notebooks(docs: Path) -> list[str]:
    """Return the pages of notebooks, relative to docs/."""
    return [f"notebooks/{path.stem}.md" for path in sorted((docs / "notebooks").glob("*.ipynb"))]


def pages(docs: Path) -> dict[str, str | bytes]:
    """Return all files that are made, by their path relative to docs/: pages and their pictures."""
    made: dict[str, str | bytes] = {
        **_commands(),
        "reference/options.md": _options(),
        "citation.md": citation.page(ROOT / CITATION),
    }
    for name, uri in ROOT_FILES.items():
        made[uri] = root_page((ROOT / name).read_text(encoding="utf-8"))
    for uri in notebooks(docs):
        made |= notebook_page((docs / uri).with_suffix(".ipynb"), uri)
    return made


# While pages are written, the program does not change.
_commands = cache(command_pages.pages)
_options = cache(reference.options)


def root_page(text: str) -> str:
    """Return a root file as a page: its links to docs/ start at docs/."""
    text = text.replace("](docs/", "](").replace("](README.md", "](index.md")
    text = text.replace(f"]({CITATION})", "](citation.md)")
    for name, uri in ROOT_FILES.items():
        text = text.replace(f"]({name}", f"]({uri}")
    return text


def notebook_page(path: Path, uri: str) -> dict[str, str | bytes]:
    """Return a notebook's page and the pictures that its cells drew."""
    import nbformat
    from nbconvert import MarkdownExporter

    notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
    folder = f"{path.stem}_files"
    given = {"output_files_dir": folder, "unique_key": path.stem}
    resources: dict[str, Any]
    text, resources = MarkdownExporter().from_notebook_node(notebook, resources=given)
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    text = re.sub(
        r"!\[\w*\]\(([^()\s]+_(\d+)_\d+\.\w+)\)",
        lambda match: f"![{_seen(path, notebook, int(match[2]))}]({match[1]})",
        text,
    )
    # The first heading stays first, and the notebook can be downloaded below it.
    note = f"\n\n[Download this notebook]({path.name}){{ download }}\n"
    text = re.sub(r"\A\s*(# [^\n]*)", lambda match: match[1] + note, text)
    parent = uri.rpartition("/")[0]
    made: dict[str, str | bytes] = {uri: text}
    for name, content in resources.get("outputs", {}).items():
        made[f"{parent}/{name}"] = content
    return made


def _seen(path: Path, notebook: Any, number: int) -> str:
    """Return what is seen in the picture of a notebook's cell, for those who do not see it."""
    text = notebook.cells[number].metadata.get("alt", "").strip()
    if not text:
        raise ValueError(
            f"{path.name}: cell {number} draws a picture. Say what is seen in it, in the key `alt` "
            "of the cell's metadata."
        )
    return str(text)
