"""The parts of the wheel's metadata that depend on the place: README.md for PyPI, and addresses.

PyPI shows README.md without the repository, so relative links and pictures do not work there.
GitHub Actions says in two variables in which repository it runs. Where they are known, the links
become addresses in that repository. Elsewhere the links become plain text and the pictures are left
out: no address is guessed. The sdist keeps the result, so a wheel built from it says the same.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_PICTURE = re.compile(r"<picture>.*?</picture>|<img\b[^>]*>|!\[[^\]]*\]\([^)\s]*\)", re.DOTALL)
_TARGET = re.compile(r'\b(src|srcset)="([^"]*)"|(?<=\]\()([^)\s]*)')
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(\s*([^)\s]*)\s*\)")
_CODE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
_LEFT_OUT = "\0"  # stands for a picture until its caption, a paragraph in italics, is left out too
_CAPTION = re.compile(rf"{_LEFT_OUT}\n\n\*[^*]+\*\n|{_LEFT_OUT}")
_ABSOLUTE = re.compile(r"https?://|mailto:|#")


class Hook(MetadataHookInterface):
    """Fills in `readme` and `urls`, which pyproject.toml declares as dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the description and the addresses to the project's metadata."""
        repository = repository_address()
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        tag = f"v{metadata['version']}"
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": description(text, repository, tag),
        }
        metadata["urls"] = self.config["urls"] | addresses(repository)


def repository_address() -> str | None:
    """Return the address of the repository whose workflow runs this, if one does."""
    server = os.environ.get("GITHUB_SERVER_URL", "").rstrip("/")
    address = f"{server}/{os.environ.get('GITHUB_REPOSITORY', '')}"
    # Any other text, such as one with a line break, would change other metadata.
    return address if re.fullmatch(r"https?://[\w.:-]+/[\w.-]+/[\w.-]+", address) else None


def addresses(repository: str | None) -> dict[str, str]:
    """Return the project's addresses in its repository, by the names that PyPI knows."""
    if repository is None:
        return {}
    return {
        "Source": repository,
        "Documentation": f"{repository}/tree/HEAD/docs",
        "Changelog": f"{repository}/blob/HEAD/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }


def description(markdown: str, repository: str | None, tag: str) -> str:
    """Return README.md with absolute links, or without relative links and pictures."""
    parts = _CODE.split(markdown)  # every second part is a block of code
    prose = [_outside(part, repository, tag) for part in parts[::2]]
    parts[::2] = prose
    return re.sub(r"\n{3,}", "\n\n", _CAPTION.sub("", "".join(parts)))


def _outside(text: str, repository: str | None, tag: str) -> str:
    """Return the text between blocks of code with its links and pictures changed."""

    def link(match: re.Match[str]) -> str:
        label, target = match.groups()
        if _ABSOLUTE.match(target) and not target.startswith("#"):
            return match[0]
        if repository is None:
            return label
        return f"[{label}]({_place(target, repository, tag, 'blob')})"

    def picture(match: re.Match[str]) -> str:
        targets = [pair[1] or pair[2] for pair in _TARGET.findall(match[0])]
        if all(_ABSOLUTE.match(target) for target in targets):
            return match[0]
        if repository is None:
            return _LEFT_OUT
        return _TARGET.sub(absolute, match[0])

    def absolute(match: re.Match[str]) -> str:
        target = _place(match[2] or match[3], repository or "", tag, "raw")
        return f'{match[1]}="{target}"' if match[1] else target

    return _LINK.sub(link, _PICTURE.sub(picture, text))


def _place(target: str, repository: str, tag: str, kind: str) -> str:
    """Return the address of a file of README.md's folder."""
    if target.startswith("#"):
        return f"{repository}/blob/{tag}/README.md{target}"
    return target if _ABSOLUTE.match(target) else f"{repository}/{kind}/{tag}/{target}"
