"""The plot of the curves between the zero-shot and the adapted model, with the report's look."""

from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd

from so_clip.report.notices import collected
from so_clip.report.plots import drawing, style
from so_clip.report.plots.fonts import families_for
from so_clip.rescore.tables import OUTPUTS

NAME = "curves"
_CAPTION = (
    "Test accuracy against the share of the adapted model, one line per run. Solid: the weights of "
    "both models are mixed (WiSE-FT); dashed: their logits."
)


def write_plot(curves: pd.DataFrame, folder: Path) -> list[str]:
    """Write curves.svg, curves.png and curves.csv; return matplotlib's remarks.

    Raises:
        InputError: the folder cannot be written.
    """
    import matplotlib

    remarks: list[str] = []
    with collected("matplotlib", remarks, ignored=("Glyph ", "findfont: ")):
        texts = (str(text) for name in ("test_set", "method_title") for text in curves[name])
        families, without_font = families_for(texts)
        title = "Between zero-shot and adapted"
        drawn = drawing.Drawing(NAME, title, _CAPTION, partial(_draw, curves), curves)
        with matplotlib.rc_context(style.RC | {"font.family": families}):
            drawing.write(drawn, folder)
    return [*without_font, *remarks]


def _draw(curves: pd.DataFrame, narrow: bool) -> Any:
    test_sets = curves["test_set"].unique()
    colours = dict(zip(curves["method_title"].unique(), cycle(style.colours()), strict=False))
    figure, axes = style.panels(len(test_sets), narrow=narrow)
    for axis, test_set in zip(axes, test_sets, strict=True):
        style.panel_title(axis, test_set)
        panel = curves[curves["test_set"] == test_set]
        for (_, title, space), line in panel.groupby(["folder", "method_title", "space"]):
            dashes = "--" if space == OUTPUTS else "-"
            axis.plot(
                line["weight"],
                line["accuracy_percent"],
                color=colours[title],
                linestyle=dashes,
                label=f"{title}, {space}",
            )
    style.label_axes(axes, "share of the adapted model", "test accuracy (%)")
    style.legend_below(figure, axes)
    return figure
