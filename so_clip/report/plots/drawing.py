"""One plot, from the figure to its files."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from so_clip.report.plots import style
from so_clip.system import atomic


@dataclass(frozen=True)
class Drawing:
    """A figure of matplotlib's and what is said of it.

    Attributes:
        name: of its files, without suffix.
        title: for people.
        caption: what is seen, and what was left out.
        figure: the figure.
        numbers: what it shows, as a tidy table.
        choice: what sets it apart from other plots of the same title, such as its shots.
    """

    name: str
    title: str
    caption: str
    figure: Any
    numbers: pd.DataFrame
    choice: str = ""


@dataclass(frozen=True)
class Plot:
    """A plot as the page takes it: a Drawing whose figure is SVG with text as text."""

    name: str
    title: str
    caption: str
    svg: str
    choice: str = ""


def write(drawing: Drawing, folder: Path) -> Plot:
    """Write NAME.svg and NAME.png for print and NAME.csv with the numbers, and return the plot.

    Raises:
        InputError: the folder cannot be written.
    """
    # Laid out once for all three; later on nothing moves any more.
    drawing.figure.draw_without_rendering()
    drawing.figure.set_layout_engine("none")
    for suffix in ("svg", "png"):
        atomic.write_bytes(folder / f"{drawing.name}.{suffix}", _rendered(drawing, suffix, "path"))
    atomic.write_text(folder / f"{drawing.name}.csv", drawing.numbers.to_csv(index=False))
    svg = _rendered(drawing, "svg", "none").decode()
    return Plot(drawing.name, drawing.title, drawing.caption, svg, drawing.choice)


def _rendered(drawing: Drawing, suffix: str, text: str) -> bytes:
    """Return the file's content; an SVG has its text as paths, as printers like it, or as text."""
    import matplotlib

    # Without a date, so that the same runs are the same file.
    metadata = {"Date": None} if suffix == "svg" else None
    stream = io.BytesIO()
    with matplotlib.rc_context(style.RC | {"svg.fonttype": text}):
        drawing.figure.savefig(stream, format=suffix, metadata=metadata)
    return stream.getvalue()
