"""Hooks of the site's build (mkdocs.yml): pages that are made, not written.

mkdocs loads this file by its path, so the site's modules are imported by their full names.
"""

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

from scripts.docs_site import made_pages

ROOT = Path(__file__).resolve().parents[2]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages of methods and notebooks to the navigation."""
    assert config.nav is not None
    _extend(config.nav, "Methods", made_pages.methods(Path(config.docs_dir)))
    _extend(config.nav, "Notebooks", made_pages.notebooks(Path(config.docs_dir)))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from the program, from root files and from notebooks."""
    for uri, text in made_pages.pages(Path(config.docs_dir)).items():
        if (old := files.get_file_from_path(uri)) is not None:
            files.remove(old)
        files.append(File.generated(config, uri, content=text, inclusion=InclusionLevel.INCLUDED))
    return files


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
