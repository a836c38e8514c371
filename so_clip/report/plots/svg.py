"""Make matplotlib's SVG fit for a page: smaller, with unique ids, in the page's colours."""

import re

from so_clip.report.plots import style

# Coordinates keep two decimals (points). Only tags are shortened: a number between tags is text.
_TAG = re.compile(r"<[^>]*>")
_COORDINATE = re.compile(r"(\d+\.\d{2})\d+")
_COLOUR = re.compile("|".join(map(re.escape, style.THEMED)))


def inline(svg: str, name: str, label: str) -> str:
    """Return an SVG document as an element for an HTML page.

    Args:
        svg: matplotlib's SVG with text as text.
        name: a prefix for ids, unique on the page: letters, digits, _ and -.
        label: the description for screen readers.
    """
    from markupsafe import escape

    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'<style type="text/css">.*?</style>', "", body, flags=re.DOTALL)
    head, _, rest = body.partition(">")
    box = re.search(r'viewBox="([^"]*)"', head)
    width = float(box[1].split()[2]) if box else 400.0
    referenced = set(re.findall(r'(?:href="#|url\(#)([^")]+)', rest))

    def tag(found: re.Match[str]) -> str:
        text = re.sub(
            r' id="([^"]*)"',
            lambda match: f' id="{name}-{match[1]}"' if match[1] in referenced else "",
            found[0],
        )
        text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
        text = _COORDINATE.sub(r"\1", text.replace("xlink:href", "href"))
        text = _COLOUR.sub(lambda match: f"var(--plot-{style.THEMED[match[0]][0]})", text)
        return re.sub(rf"fill: {style.PAPER[0]}\b", "fill: var(--plot-paper)", text)

    rest = re.sub(r"\s*\n\s*", "\n", _TAG.sub(tag, rest))
    return (
        f'<svg role="img" aria-label="{escape(label)}" viewBox="{box[1] if box else ""}" '
        f'style="--width: {width:.0f}pt" xmlns="http://www.w3.org/2000/svg">{rest}'
    )
