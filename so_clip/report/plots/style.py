"""The look of plots: each method has one colour and one marker throughout a report.

Colours are safe for colour-blind readers; markers distinguish the lines in black and white.
"""

import math
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from so_clip.report.plots.fonts import FAMILY

# Okabe and Ito's colours (jfly.uni-koeln.de/color) without yellow and black, and two more that stay
# distinct under the common colour deficiencies. The second of each pair is for a dark background.
PALETTE = {
    "blue": ("#0072b2", "#4ba6e8"),
    "vermillion": ("#d55e00", "#ff8b45"),
    "green": ("#009e73", "#2fc79b"),
    "purple": ("#b4578f", "#e08fc0"),
    "orange": ("#e69f00", "#f2b632"),
    "sky": ("#56b4e9", "#a5dcff"),
    "brown": ("#7a4b2a", "#c69470"),
    "indigo": ("#4b3fa6", "#a59bff"),
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
INK, MUTED, GRID = "#1b1b1f", "#5c5c66", "#d9d9e0"
# Colours in a figure that the page replaces: colour -> (name in CSS, dark colour).
THEMED = {value[0]: (name, value[1]) for name, value in PALETTE.items()} | {
    INK: ("ink", "#ececf1"),
    MUTED: ("muted", "#a9a9b6"),
    GRID: ("grid", "#3a3a46"),
}
PAPER = ("#ffffff", "#17171c")
# The page's own colours, light and dark; the last two are drawn half-transparent.
PAGE = {
    "paper": PAPER,
    "card": ("#f6f6f9", "#212128"),
    "line": ("#d9d9e2", "#3a3a46"),
    "ink": (INK, THEMED[INK][1]),
    "soft": ("#56565f", "#b0b0bd"),
    "link": ("#0059a8", "#7cbcff"),
    "mark": ("#e4eefa", "#22364d"),
    "good": ("#00694c", "#4fd3ab"),
    "bad": ("#b3361b", "#ff9d84"),
    "focus": ("#0059a8", "#7cbcff"),
    "right": ("0 114 178", "36 104 168"),
    "wrong": ("213 94 0", "196 84 22"),
}
ZERO_SHOT = "zero_shot"
MAX_LINES = len(PALETTE)
# The width of a figure for phones: 390 CSS pixels less the page's margins.
NARROW_INCHES = 3.7

RC: Any = {
    "font.family": FAMILY,
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.labelsize": 8.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    # A tick shows its whole number: no "+8e1" or "1e-4" beside the axis.
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-9, 12),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "patch.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,  # a method may have a $ in its title
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "savefig.facecolor": "white",
    "svg.hashsalt": "so_clip",  # the same runs give the same file
}


@dataclass(frozen=True)
class Line:
    """One line or point: a method with one variant of its settings.

    Attributes:
        method, title, variant: the columns of its runs; the title is in the legend.
        colour, marker: the same in all plots of the report.
    """

    method: str
    title: str
    variant: str
    colour: str
    marker: str

    def of(self, rows: pd.DataFrame, title: str = "method_title") -> pd.DataFrame:
        """Return the rows of this line; `title` is the column with the method's title."""
        return rows[(rows[title] == self.title) & (rows["variant"] == self.variant)]


def one_variant_each(runs: pd.DataFrame) -> pd.DataFrame:
    """Return for each method the variant of its settings with the most runs.

    To take the most accurate variant would be a choice by test images, and so unfair. SO comes
    first, then methods by their number of datasets and shots, then by accuracy.

    Returns:
        The columns `method`, `method_title`, `variant`; without zero-shot CLIP.
    """
    by = ["method", "method_title", "variant"]
    trained = runs[runs["method"] != ZERO_SHOT]
    places = trained["dataset"].astype(str) + "\0" + trained["shots"].astype(str)
    grouped = trained.assign(place=places).groupby(by, sort=True)
    counted = grouped.agg(
        runs=("seed", "size"), places=("place", "nunique"), accuracy=("accuracy_percent", "mean")
    ).reset_index()
    most = counted.sort_values(["runs", "variant"], ascending=[False, True], kind="stable")
    most = most.drop_duplicates("method_title")
    most = most.assign(first=most["method"] == "so")
    order = ["first", "places", "accuracy", "method_title"]
    most = most.sort_values(order, ascending=[False, False, False, True], kind="stable")
    return most[by].reset_index(drop=True)


def choose_lines(runs: pd.DataFrame) -> list[Line]:
    """Choose the lines of all plots of a report, one per colour at most."""
    chosen: Iterable[Any] = one_variant_each(runs).itertuples()
    return [
        Line(row.method, row.method_title, row.variant, colour, marker)
        for row, colour, marker in zip(chosen, colours(), MARKERS, strict=False)
    ]


def grid_shape(panels: int) -> tuple[int, int]:
    """Return rows and columns of a grid of panels, with at most four columns."""
    columns = panels if panels <= 3 else (2 if panels == 4 else (3 if panels <= 9 else 4))
    return -(-panels // columns), columns


def panels(
    count: int, width: float = 2.5, height: float = 2.1, *, narrow: bool = False
) -> tuple[Any, list[Any]]:
    """Return a figure and `count` axes in a grid; a single panel is larger.

    Args:
        count: the number of panels.
        width, height: of a panel, in inches.
        narrow: fit the figure to a phone: one column, or two of small panels.
    """
    from matplotlib.figure import Figure

    rows, columns = grid_shape(count)
    if count == 1:
        width, height = 4.6, 3.2
    if narrow:
        columns = 2 if count > 1 and width <= 2.5 else 1
        rows = -(-count // columns)
        height *= max(0.9, NARROW_INCHES / columns / width)
        width = NARROW_INCHES / columns
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for spare in axes[count:]:
        spare.set_visible(False)
    return figure, axes[:count]


def legend_below(figure: Any, axes: Sequence[Any]) -> None:
    """Add one legend for all panels below them."""
    found: dict[str, Any] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    if not found:
        return
    width = figure.get_figwidth()
    labels = [wrapped(label, width - 0.6, 8.5) for label in found]
    longest = max(len(line) for label in labels for line in label.splitlines())
    columns = max(1, int(width / (0.6 + 0.075 * longest)))
    # Further lines of the legend make the figure higher, not the panels lower.
    lines = math.ceil(len(labels) / columns) * max(label.count("\n") + 1 for label in labels)
    figure.set_figheight(figure.get_figheight() + 0.19 * (lines - 1))
    figure.legend(
        found.values(), labels, loc="outside lower center", ncols=min(len(found), columns)
    )


def panel_title(axis: Any, text: str) -> None:
    """Set a panel's title, in several lines if it is wider than the panel."""
    columns = axis.get_subplotspec().get_gridspec().ncols
    axis.set_title(wrapped(text, axis.figure.get_figwidth() / columns - 0.35, 9.5))


def wrapped(text: str, inches: float, points: float) -> str:
    """Wrap a text of a font size in points to a width; bold letters are 0.65 of the size wide."""
    wide = any(unicodedata.east_asian_width(character) in "WF" for character in text)
    letters = max(8, int(72 * inches / (points * (1.0 if wide else 0.65))))
    return textwrap.fill(text, letters, break_on_hyphens=False)


def plot_band(
    axis: Any, x: pd.Series, mean: pd.Series, std: pd.Series, line: Line, markers: int | None = None
) -> None:
    """Draw a line through the means, with a band of ± one deviation.

    Args:
        axis: the panel.
        x, mean, std: the points; a NaN deviation gives no band.
        line: the line's look and label.
        markers: about the largest number of markers; None for one per point.
    """
    every = None if markers is None else max(1, len(x) // markers)
    axis.plot(x, mean, color=line.colour, marker=line.marker, markevery=every, label=line.title)
    spread = std.fillna(0.0)
    if spread.any():
        axis.fill_between(
            x, mean - spread, mean + spread, color=line.colour, alpha=0.16, linewidth=0
        )


def zero_shot_line(axis: Any, accuracy_percent: float) -> None:
    """Draw zero-shot CLIP's accuracy as a dashed line."""
    axis.axhline(
        accuracy_percent, color=INK, linestyle="--", linewidth=1, label="Zero-shot CLIP", zorder=1
    )


def colours() -> list[str]:
    """Return the colours for a white background, in order."""
    return [light for light, _ in PALETTE.values()]


def whole_ticks(axis: Any) -> None:
    """Let an axis (x or y) have ticks at whole numbers only, such as steps and layers."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1, steps=(1, 2, 5, 10)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def one_notation(values: Sequence[float]) -> list[str]:
    """Return numbers in one notation: all as decimals, or all with an exponent."""
    if all(value == 0 or 1e-4 <= abs(value) < 1e6 for value in values):
        return [f"{value:g}" for value in values]
    parts = [f"{value:.5e}".split("e") for value in values]
    return [f"{float(mantissa):g}e{int(exponent)}" for mantissa, exponent in parts]


def plain_log(axis: Any, values: pd.Series) -> None:
    """Make an axis (x or y) logarithmic, with plain numbers at a few ticks.

    By default matplotlib labels powers of ten only, so a range below a decade has no labels.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    decades = math.log10(float(values.max()) / float(values.min()))
    subs = (1.0,) if decades > 3 else (1.0, 2.0, 5.0) if decades > 1.2 else (1, 1.5, 2, 3, 4, 5, 7)
    axis.set_major_locator(LogLocator(subs=subs))
    decimal = partial(np.format_float_positional, precision=6, fractional=False, trim="-")
    axis.set_major_formatter(FuncFormatter(lambda value, _: decimal(value)))
    axis.set_minor_formatter(NullFormatter())


def label_axes(axes: Sequence[Any], x: str, y: str) -> None:
    """Label x below the lowest panel of each column, and y to the left of each row."""
    shape = axes[0].get_subplotspec().get_gridspec()
    width, height = axes[0].figure.get_size_inches()
    x = wrapped(x, width / shape.ncols - 0.5, 8.0)
    y = wrapped(y, height / shape.nrows - 0.3, 8.0)
    for place, axis in enumerate(axes):
        if place + shape.ncols >= len(axes):
            axis.set_xlabel(x)
        if place % shape.ncols == 0:
            axis.set_ylabel(y)


def luminance(colour: Sequence[float]) -> float:
    """Return the relative luminance of an sRGB colour in [0, 1].

    Black and white text have the same contrast at 0.179 (www.w3.org/TR/WCAG21).
    """
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in colour[:3]
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def in_words(variant: str) -> str:
    """Shorten a variant for a heading: options without their group, the density as κ."""
    parts = [part.rpartition("=") for part in variant.split(", ")]
    names = (
        (key.rpartition(".")[2].replace("density_ratio", "κ"), value) for key, _, value in parts
    )
    return ", ".join(f"{key}={value}" if key else value for key, value in names)


def in_file(text: str) -> str:
    """Return the text in a form that is safe in file names."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_").lower()


def others(runs: pd.DataFrame, lines: Sequence[Line]) -> str:
    """Return a sentence that counts the methods and variants without a line; empty if none."""
    trained = runs[runs["method"] != ZERO_SHOT]
    variants = set(zip(trained["method_title"], trained["variant"], strict=True))
    more = len(variants - {(line.title, line.variant) for line in lines})
    return f" {more} more methods or settings are only in the tables." if more else ""
