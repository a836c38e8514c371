"""Hooks of the site's build (mkdocs.yml): pages that are made, and the checks of all pages.

A page that names what does not exist gives a warning with its line; `mkdocs build --strict` then
fails.

mkdocs loads this file by its path, so the site's modules are imported by their full names.
"""

import logging
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

from scripts.docs_site import command_pages, fences, made_pages
from scripts.docs_site.checks import wrong_names

log = logging.getLogger("mkdocs.hooks.so_clip")
ROOT = Path(__file__).resolve().parents[2]
# Pages for a first visit are found before lists and measurements with the same words.
BOOSTS = dict.fromkeys(("start/", "questions.md", "how_to/own_images.md", "how_to/sweeps.md"), 2.0)
BOOSTS |= dict.fromkeys(("api/", "reference/", "methods/", "benchmarks/"), 0.5)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages of notebooks and commands to the navigation."""
    assert config.nav is not None
    _extend(config.nav, "Command line", list(command_pages.pages()))
    _extend(config.nav, "Notebooks", made_pages.notebooks(Path(config.docs_dir)))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from the program, from root files and from notebooks."""
    for uri, text in made_pages.pages(Path(config.docs_dir)).items():
        if (old := files.get_file_from_path(uri)) is not None:
            files.remove(old)
        files.append(File.generated(config, uri, content=text, inclusion=InclusionLevel.INCLUDED))
    for name in made_pages.CHECKED_FILES:
        if (path := ROOT / name).is_file():
            _check(name, path.read_text(encoding="utf-8"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Check a page of docs/, name the places of its made blocks, set its rank in the search.

    The pages that are made follow the program, or their files do: they are not checked.
    """
    if page.file.generated_by is None:
        name, text = f"docs/{page.file.src_uri}", page.file.content_string
        _check(name, text)
        markdown = fences.with_places(markdown, name, text.count("\n") - markdown.count("\n"))
    for start, boost in BOOSTS.items():
        if page.file.src_uri.startswith(start):
            page.meta.setdefault("search", {"boost": boost})
    # Behind a comment, mkdocs would not take the first heading as the page's title.
    return re.sub(r"\A(\s*<!--.*?-->)+\s*", "", markdown, flags=re.DOTALL)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put each table into a box that scrolls, also with the keyboard, so that the page does not."""
    opening = '<div class="scroll" tabindex="0" role="group" aria-label="Table"><table>'
    return re.sub(r"<table>(.*?)</table>", rf"{opening}\1</table></div>", html, flags=re.DOTALL)


def _check(name: str, text: str) -> None:
    for wrong in wrong_names(text):
        log.warning("%s: %s", name, wrong)


def _extend(nav: list[Any], title: str, pages: list[str]) -> bool:
    """Append pages to the section with this title, wherever it is."""
    for entry in nav:
        for name, inner in entry.items() if isinstance(entry, dict) else ():
            if name == title:
                inner += [page for page in pages if page not in inner]
                return True
            if isinstance(inner, list) and _extend(inner, title, pages):
                return True
    return False
