"""One plot, from matplotlib's figure to its files."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from so_clip.report.formats.text import to_csv
from so_clip.system import atomic


@dataclass(frozen=True)
class Drawing:
    """A figure and its description.

    Attributes:
        name: the name of its files, without suffix.
        title: the heading.
        caption: what it shows, and what is left out.
        draw: draws matplotlib's figure, narrow (for phones) or wide.
        numbers: the values it shows, as a tidy table.
        choice: how it differs from other plots with the same title, for example its shots.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[bool], Any]
    numbers: pd.DataFrame
    choice: str = ""

    @cached_property
    def figure(self) -> Any:
        """The wide figure."""
        return self.draw(False)


@dataclass(frozen=True)
class Plot:
    """A Drawing for the page: its figures as SVG with text as text; `narrow` is for phones."""

    name: str
    title: str
    caption: str
    svg: str
    narrow: str
    choice: str = ""


def write(drawing: Drawing, folder: Path) -> Plot:
    """Write NAME.svg and NAME.png for print and NAME.csv with the numbers; return the plot.

    Raises:
        InputError: the folder cannot be written.
    """
    figure = _laid_out(drawing.figure)
    for suffix in ("svg", "png"):
        atomic.write_bytes(folder / f"{drawing.name}.{suffix}", _rendered(figure, suffix, "path"))
    atomic.write_text(folder / f"{drawing.name}.csv", to_csv(drawing.numbers))
    wide, narrow = (
        _rendered(shown, "svg", "none").decode()
        for shown in (figure, _laid_out(drawing.draw(True)))
    )
    return Plot(drawing.name, drawing.title, drawing.caption, wide, narrow, drawing.choice)


def _laid_out(figure: Any) -> Any:
    """Compute a figure's layout once for all files: without an engine it does not change later."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def _rendered(figure: Any, suffix: str, text: str) -> bytes:
    """Return the file's content; `text` is "path" (for print) or "none" (text stays text)."""
    import matplotlib

    # Without a date, the same runs give the same file.
    metadata = {"Date": None} if suffix == "svg" else None
    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": text}):
        figure.savefig(stream, format=suffix, metadata=metadata)
    return stream.getvalue()
