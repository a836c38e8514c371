"""One plot, from matplotlib's figure to its files."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from so_clip.report.plots import style
from so_clip.system import atomic


@dataclass(frozen=True)
class Drawing:
    """A figure and its description.

    Attributes:
        name: the name of its files, without suffix.
        title: the heading.
        caption: what it shows, and what is left out.
        figure: matplotlib's figure.
        numbers: the values it shows, as a tidy table.
        choice: how it differs from other plots with the same title, for example its shots.
    """

    name: str
    title: str
    caption: str
    figure: Any
    numbers: pd.DataFrame
    choice: str = ""


@dataclass(frozen=True)
class Plot:
    """A Drawing for the page: its figure as SVG with text as text."""

    name: str
    title: str
    caption: str
    svg: str
    choice: str = ""


def write(drawing: Drawing, folder: Path) -> Plot:
    """Write NAME.svg and NAME.png for print and NAME.csv with the numbers; return the plot.

    Raises:
        InputError: the folder cannot be written.
    """
    # One layout for all files: without an engine nothing moves any more.
    drawing.figure.draw_without_rendering()
    drawing.figure.set_layout_engine("none")
    for suffix in ("svg", "png"):
        atomic.write_bytes(folder / f"{drawing.name}.{suffix}", _rendered(drawing, suffix, "path"))
    atomic.write_text(folder / f"{drawing.name}.csv", drawing.numbers.to_csv(index=False))
    svg = _rendered(drawing, "svg", "none").decode()
    return Plot(drawing.name, drawing.title, drawing.caption, svg, drawing.choice)


def _rendered(drawing: Drawing, suffix: str, text: str) -> bytes:
    """Return the file's content; `text` is "path" (for print) or "none" (text stays text)."""
    import matplotlib

    # Without a date, the same runs give the same file.
    metadata = {"Date": None} if suffix == "svg" else None
    stream = io.BytesIO()
    with matplotlib.rc_context(style.RC | {"svg.fonttype": text}):
        drawing.figure.savefig(stream, format=suffix, metadata=metadata)
    return stream.getvalue()
