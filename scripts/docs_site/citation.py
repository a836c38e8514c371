"""The page on citing so_clip, made from CITATION.cff."""

from pathlib import Path
from typing import Any

import yaml

_HEAD = """\
# Cite so_clip

{message}

The file `CITATION.cff` has the same data, in the Citation File Format. Name the version that you
used: `python -m so_clip --version` prints it.

## The software

"""
_PAPERS = """
## The papers

The page of [a method](methods/index.md) names its source.

"""


def page(path: Path) -> str:
    """Return the page's Markdown.

    Args:
        path: CITATION.cff.
    """
    cited = yaml.safe_load(path.read_text(encoding="utf-8"))
    papers = "\n".join(_block(work) for work in cited["references"])
    return _HEAD.format(message=cited["message"]) + _block(cited) + _PAPERS + papers


def _block(work: dict[str, Any]) -> str:
    return f"```bibtex\n{bibtex(work)}\n```\n"


def bibtex(work: dict[str, Any]) -> str:
    """Return the BibTeX entry of the software or of a reference."""
    kind = {"software": "software", "conference-paper": "inproceedings"}.get(work["type"], "misc")
    numbers = [name["value"].removeprefix("arXiv:") for name in work.get("identifiers", ())]
    fields = {
        "title": f"{{{work['title']}}}",
        "author": " and ".join(_author(who) for who in work["authors"]),
        "booktitle": work.get("conference", {}).get("name"),
        "year": work.get("year"),
        "version": work.get("version"),
        "license": work.get("license"),
        "eprint": numbers[0] if numbers else None,
        "archiveprefix": "arXiv" if numbers else None,
        "url": work.get("url"),
    }
    key = f"arxiv_{numbers[0]}" if numbers else work["title"].partition(":")[0]
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value is not None]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])


def _author(who: dict[str, str]) -> str:
    """Return an author for BibTeX: a group in braces, a person with the family name first."""
    if "name" in who:
        return f"{{{who['name']}}}"
    return f"{who['family-names']}, {who['given-names']}"
