"""The look of the site's pictures: one light and one dark SVG file for each.

    def draw(scheme: Scheme) -> Figure:
        figure = new_figure(height=2.4)
        axis = figure.subplots()
        axis.plot([1, 2, 3], color=scheme.blue)
        return figure

    save_pair(draw, "name")  # docs/figures/name-light.svg and name-dark.svg

A picture is at most `WIDTH` inches wide, so that its letters stay readable on a phone. The
background is transparent. Letters are measured in DejaVu Sans, which matplotlib brings along, and
shown in the reader's own font, which is narrower: the same data give the same bytes on every
machine.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from so_clip.report.plots import style

FIGURES = Path(__file__).parents[2] / "docs" / "figures"
WIDTH = 5.2
READERS_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"


@dataclass(frozen=True)
class Scheme:
    """The colours of one scheme; the eight hues are those of the report's plots.

    Attributes:
        name: "light" or "dark".
        ink: text and lines that must be read.
        muted: axes and secondary text, at least 4.5 : 1 on `paper`.
        grid: lines that only guide the eye.
        paper: about the page's background, for text on filled shapes. The picture has none.
        blue, vermillion, ...: safe for colour-blind readers.
    """

    name: str
    ink: str
    muted: str
    grid: str
    paper: str
    blue: str
    vermillion: str
    green: str
    purple: str
    orange: str
    sky: str
    brown: str
    indigo: str

    @property
    def hues(self) -> tuple[str, ...]:
        """The eight hues in the order of the report's lines."""
        return tuple(getattr(self, name) for name in style.PALETTE)


def _scheme(name: str, place: int) -> Scheme:
    hues = {hue: pair[place] for hue, pair in style.PALETTE.items()}
    ink, muted, grid = (
        (light, style.THEMED[light][1])[place] for light in (style.INK, style.MUTED, style.GRID)
    )
    return Scheme(name, ink, muted, grid, style.PAPER[place], **hues)


LIGHT, DARK = _scheme("light", 0), _scheme("dark", 1)


def rc_of(scheme: Scheme) -> Any:
    """Return matplotlib's settings for one scheme."""
    return {
        **style.RC,
        "font.family": ["DejaVu Sans"],
        "font.size": 10,
        "axes.titlesize": 10,
        "axes.labelsize": 10,
        "xtick.labelsize": 9.5,
        "ytick.labelsize": 9.5,
        "legend.fontsize": 9.5,
        "axes.edgecolor": scheme.muted,
        "axes.labelcolor": scheme.ink,
        "axes.titlecolor": scheme.ink,
        "axes.facecolor": "none",
        "axes.prop_cycle": _cycle(scheme),
        "figure.facecolor": "none",
        "grid.color": scheme.grid,
        "savefig.facecolor": "none",
        "savefig.transparent": True,
        "text.color": scheme.ink,
        "xtick.color": scheme.muted,
        "ytick.color": scheme.muted,
        "xtick.labelcolor": scheme.ink,
        "ytick.labelcolor": scheme.ink,
        "svg.fonttype": "none",
        "svg.hashsalt": "so_clip",
    }


def _cycle(scheme: Scheme) -> Any:
    from cycler import cycler

    return cycler(color=scheme.hues)


def new_figure(height: float) -> Any:
    """Return an empty matplotlib figure with the layout of the site; height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def save_pair(
    draw: Callable[[Scheme], Any], name: str, folder: Path = FIGURES
) -> tuple[Path, Path]:
    """Write FOLDER/NAME-light.svg and FOLDER/NAME-dark.svg.

    Args:
        draw: makes the matplotlib figure in the colours of a scheme; matplotlib's settings are
            those of `rc_of` while it runs.
        name: of the picture, without scheme and suffix.
        folder: is made if it does not exist.

    Returns:
        The paths of both files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    light = _save(draw, LIGHT, folder / f"{name}-light.svg")
    dark = _save(draw, DARK, folder / f"{name}-dark.svg")
    return light, dark


def _save(draw: Callable[[Scheme], Any], scheme: Scheme, path: Path) -> Path:
    import matplotlib

    # The clean-up of the reader's own matplotlibrc comes first.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(rc_of(scheme))
        written = io.StringIO()
        draw(scheme).savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    path.write_text(tidy(written.getvalue()), encoding="utf-8")
    return path


def tidy(svg: str) -> str:
    """Return matplotlib's SVG with the reader's font, without metadata, with short numbers."""
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"'?DejaVu Sans'?", READERS_FONT, svg)

    def short(tag: re.Match[str]) -> str:
        return re.sub(r"(\d+\.\d{2})\d+", r"\1", tag[0])

    return re.sub(r"[ \t]+\n", "\n", re.sub(r"<[^>]*>", short, svg))
