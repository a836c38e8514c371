"""What the site makes of its own fenced blocks: `table`, `math` and `output`.

A block that cannot be shown fails the build. The message names the page and the line, which the
hook writes behind the fence: superfences does not know them.
"""

import functools
import html
import re
from collections.abc import Callable
from typing import Any

from latex2mathml import converter
from mkdocs.exceptions import BuildError
from pymdownx.superfences import SuperFencesException

from scripts.docs_site.blocks import blocks_of
from scripts.docs_site.tables import TableError, table_of

KINDS = ("table", "math", "facts")


class FenceError(SuperFencesException, BuildError):
    """A block cannot be shown. Both bases are needed for the build to end with this message."""


def with_places(markdown: str, name: str, line: int = 0) -> str:
    """Return a page with each made block's place behind its fence.

    Args:
        markdown: the page.
        name: the page's name in messages.
        line: how many lines of the page's file come before.
    """
    lines = markdown.split("\n")
    for block in blocks_of(markdown):
        if block.kind in KINDS:
            lines[block.line - 1] += f' {{ place="{name}: line {line + block.line}" }}'
    return "\n".join(lines)


def placed(make: Callable[..., str]) -> Callable[..., str]:
    """Begin the message of a block's error with the place that `with_places` wrote."""

    @functools.wraps(make)
    def made(*given: Any, **more: Any) -> str:
        try:
            return make(*given, **more)
        except FenceError as error:
            place = more.get("attrs", {}).get("place")
            raise FenceError(f"{place}: {error}" if place else str(error)) from error

    return made


@placed
def table(source: str, language: str, css_class: str, options: Any, md: Any, **kwargs: Any) -> str:
    """Return the table that a `table` block describes, as HTML; see `scripts.docs_site.tables`."""
    try:
        return table_of(source)
    except TableError as error:
        raise FenceError(f"table: {error}") from error
    except Exception as error:  # superfences would show the block's source, without an error
        raise FenceError(f"table: {type(error).__name__}: {error}\n{source}") from error


@placed
def formula(
    source: str, language: str, css_class: str, options: Any, md: Any, **kwargs: Any
) -> str:
    """Return a formula in LaTeX as MathML."""
    try:
        converted = converter.convert(source.strip(), display="block")
    except Exception as error:
        raise FenceError(f"math: {source.strip()}: {type(error).__name__}: {error}") from error
    braces = re.sub(r"\\.", "", source)
    if braces.count("{") != braces.count("}"):
        raise FenceError(f"math: {source.strip()}: a brace has no partner.")
    if re.search(r"</?(?!m)[a-zA-Z]", converted):
        raise FenceError(f"math: {source.strip()}: write \\lt, not <, in a text.")
    if "\\" in html.unescape(converted) or "<mi>&</mi>" in converted or "newline" in converted:
        raise FenceError(
            f"math: {source.strip()}: latex2mathml does not know a command in it, or has another "
            "name for it: lines that are aligned at & are in \\begin{split} ... \\end{split}"
        )
    return f'<div class="formula" tabindex="0" role="group" aria-label="Formula">{converted}</div>'


def output(source: str, language: str, css_class: str, options: Any, md: Any, **kwargs: Any) -> str:
    """Return what the block above printed, as plain text."""
    return (
        '<pre class="output" tabindex="0" role="group" aria-label="Output">'
        f"<samp>{html.escape(source, quote=False)}</samp></pre>"
    )
