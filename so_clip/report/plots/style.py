"""How plots look: one colour and marker for each method throughout a report, safe for the
colour-blind, readable in print, and told apart by shape where colour is lost."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

# Okabe and Ito's colours (jfly.uni-koeln.de/color) without yellow and black, and two that stay
# apart from them in the common colour deficiencies. The second is for dark paper, on the page.
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
# What the page replaces by its own colours, light or dark: colour in a figure -> (CSS name, dark).
THEMED = {value[0]: (name, value[1]) for name, value in PALETTE.items()} | {
    INK: ("ink", "#ececf1"),
    MUTED: ("muted", "#a9a9b6"),
    GRID: ("grid", "#3a3a46"),
}
PAPER = ("#ffffff", "#17171c")
# The page's own colours, light and dark; the last two are mixed with what is below them.
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
# As many lines as one can follow.
MAX_LINES = len(PALETTE)

RC: Any = {
    "font.family": "DejaVu Sans",
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
    "svg.hashsalt": "so_clip",  # the same runs are the same file
}


@dataclass(frozen=True)
class Line:
    """What is drawn as one line or point: a method with one choice of its settings.

    Attributes:
        method, title, variant: of its runs.
        label: for the legend.
        colour, marker: of this method in all plots of the report.
    """

    method: str
    title: str
    variant: str
    label: str
    colour: str
    marker: str

    def of(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Return its runs among `runs`."""
        return runs[(runs["method_title"] == self.title) & (runs["variant"] == self.variant)]


def one_variant_each(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row a method with the variant of its settings that has the most runs.

    Not the most accurate one: a variant that was chosen on test images would be no fair picture.
    SO comes first, then those with runs on the most datasets and shots, the more accurate first.

    Returns:
        The columns `method`, `method_title`, `variant`; without zero-shot CLIP.
    """
    by = ["method", "method_title", "variant"]
    trained = runs[runs["method"] != ZERO_SHOT]
    places = trained["dataset"].astype(str) + "\0" + trained["shots"].astype(str)
    grouped = trained.assign(place=places).groupby(by, sort=True)
    each = grouped.agg(
        runs=("seed", "size"), places=("place", "nunique"), accuracy=("accuracy_percent", "mean")
    ).reset_index()
    most = each.sort_values(["runs", "variant"], ascending=[False, True], kind="stable")
    most = most.drop_duplicates("method_title")
    most = most.assign(first=most["method"] == "so")
    order = ["first", "places", "accuracy", "method_title"]
    most = most.sort_values(order, ascending=[False, False, False, True], kind="stable")
    return most[by].reset_index(drop=True)


def choose_lines(runs: pd.DataFrame) -> list[Line]:
    """Choose what is drawn as lines, the same in all plots of a report: as many as are colours."""
    chosen: Iterable[Any] = one_variant_each(runs).itertuples()
    return [
        Line(row.method, row.method_title, row.variant, row.method_title, colour, marker)
        for row, colour, marker in zip(chosen, colours(), MARKERS, strict=False)
    ]


def grid_shape(panels: int) -> tuple[int, int]:
    """Return rows and columns for so many panels: at most four beside each other."""
    columns = panels if panels <= 3 else (2 if panels == 4 else (3 if panels <= 9 else 4))
    return -(-panels // columns), columns


def panels(count: int, width: float = 2.5, height: float = 2.1) -> tuple[Any, list[Any]]:
    """Return a figure and so many axes in a grid; a single one is larger. Sizes are in inches."""
    from matplotlib.figure import Figure

    rows, columns = grid_shape(count)
    if count == 1:
        width, height = 4.6, 3.2
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for spare in axes[count:]:
        spare.set_visible(False)
    return figure, axes[:count]


def legend_below(figure: Any, axes: Sequence[Any]) -> None:
    """Put one legend for all panels below them."""
    found: dict[str, Any] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    if not found:
        return
    columns = max(1, int(figure.get_figwidth() / (0.6 + 0.075 * max(map(len, found)))))
    figure.legend(found.values(), found, loc="outside lower center", ncols=min(len(found), columns))


def plot_band(
    axis: Any, x: pd.Series, mean: pd.Series, std: pd.Series, line: Line, markers: int | None = None
) -> None:
    """Draw a line through the means, and a band of one deviation to both sides where there is.

    Args:
        axis: where.
        x, mean, std: the points; a missing deviation is none.
        line: whose.
        markers: at most about so many; None for one a point.
    """
    every = None if markers is None else max(1, len(x) // markers)
    axis.plot(x, mean, color=line.colour, marker=line.marker, markevery=every, label=line.label)
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
    """Return the colours for white paper, in order."""
    return [light for light, _ in PALETTE.values()]


def plain_log(axis: Any, values: pd.Series) -> None:
    """Make an axis (figure's x or y) logarithmic, with plain numbers at a few ticks.

    matplotlib alone labels powers of ten, and nothing where there is less than a decade.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    decades = math.log10(float(values.max()) / float(values.min()))
    subs = (1.0,) if decades > 3 else (1.0, 2.0, 5.0) if decades > 1.2 else (1, 1.5, 2, 3, 4, 5, 7)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def label_axes(axes: Sequence[Any], x: str, y: str) -> None:
    """Name x below the lowest panel of each column, and y to the left of each row."""
    shape = axes[0].get_subplotspec().get_gridspec()
    for place, axis in enumerate(axes):
        if place + shape.ncols >= len(axes):
            axis.set_xlabel(x)
        if place % shape.ncols == 0:
            axis.set_ylabel(y)


def luminance(colour: Sequence[float]) -> float:
    """Return the relative luminance of an sRGB colour in [0, 1]; black and white text stand out
    from 0.179 equally well (www.w3.org/TR/WCAG21, relative luminance)."""
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in colour[:3]
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def in_words(variant: str) -> str:
    """Shorten a variant for a legend: an option without its group, the density as κ."""
    parts = [part.rpartition("=") for part in variant.split(", ")]
    names = (
        (key.rpartition(".")[2].replace("density_ratio", "κ"), value) for key, _, value in parts
    )
    return ", ".join(f"{key}={value}" if key else value for key, value in names)


def in_file(text: str) -> str:
    """Return text as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_").lower()


def in_shots(shots: int) -> str:
    """Return the number of shots for people."""
    return f"{shots} shot" + ("" if shots == 1 else "s")


def others(runs: pd.DataFrame, lines: Sequence[Line]) -> str:
    """Say how many methods and variants of `runs` have no line; nothing if all have one."""
    trained = runs[runs["method"] != ZERO_SHOT]
    all_of_them = set(zip(trained["method_title"], trained["variant"], strict=True))
    more = len(all_of_them - {(line.title, line.variant) for line in lines})
    return f" {more} more methods or settings are in the tables alone." if more else ""
