"""matplotlib's SVG made fit for a page: smaller, without clashes, in the page's colours."""

import re

from so_clip.report.plots import style

# Coordinates to a hundredth of a point.
_NUMBER = re.compile(r"(\d+\.\d{2})\d+")
_COLOUR = re.compile("|".join(map(re.escape, style.THEMED)))


def inline(svg: str, name: str, label: str) -> str:
    """Return an SVG document as an element for an HTML page.

    Args:
        svg: as matplotlib wrote it, with text as text.
        name: a prefix for its ids, unique on the page: letters, digits, _ and -.
        label: what a reader who cannot see it is told.
    """
    from markupsafe import escape

    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'<style type="text/css">.*?</style>', "", body, flags=re.DOTALL)
    head, _, rest = body.partition(">")
    box = re.search(r'viewBox="([^"]*)"', head)
    width = float(box[1].split()[2]) if box else 400.0
    referred = set(re.findall(r'(?:href="#|url\(#)([^")]+)', rest))
    rest = re.sub(r' id="([^"]*)"', lambda found: _id(found[1], referred, name), rest)
    rest = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", rest)
    rest = rest.replace("xlink:href", "href")
    rest = _NUMBER.sub(r"\1", rest)
    rest = _COLOUR.sub(lambda found: f"var(--plot-{style.THEMED[found[0]][0]})", rest)
    rest = re.sub(rf"fill: {style.PAPER[0]}\b", "fill: var(--plot-paper)", rest)
    rest = re.sub(r"\s*\n\s*", "\n", rest)
    return (
        f'<svg role="img" aria-label="{escape(label)}" viewBox="{box[1] if box else ""}" '
        f'style="--width: {width:.0f}pt" xmlns="http://www.w3.org/2000/svg">{rest}'
    )


def _id(name: str, referred: set[str], prefix: str) -> str:
    """Keep an id, with its prefix, if something refers to it."""
    return f' id="{prefix}-{name}"' if name in referred else ""
