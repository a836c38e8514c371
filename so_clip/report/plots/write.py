"""Write the report's plots: each as SVG and PNG for print, as CSV, and as SVG for the page."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from so_clip.report.averages import few_shot_runs
from so_clip.report.notices import collected
from so_clip.report.plots import drawing, style
from so_clip.report.plots.accuracy import accuracy_vs_memory, accuracy_vs_shots
from so_clip.report.plots.drawing import Drawing, Plot
from so_clip.report.plots.fonts import families_for
from so_clip.report.plots.kappa_t import kappa_t
from so_clip.report.plots.style import Line
from so_clip.report.plots.support import support
from so_clip.report.plots.training import accuracy_curves, loss_curves
from so_clip.report.progress import watched
from so_clip.report.wording import IMAGE_WORDS, by_task, wording_of

# The columns whose texts are in plots.
_TEXTS = ("dataset", "backbone", "method_title", "variant")
FOLDER = "plots"
PLOTS = (
    accuracy_vs_shots,
    accuracy_vs_memory,
    kappa_t,
    loss_curves,
    accuracy_curves,
    support,
)


def write(runs: pd.DataFrame, out: Path) -> tuple[list[Plot], list[str]]:
    """Draw every plot that the runs have data for into `out`/plots.

    Args:
        runs: one line per run: the columns of metrics.json, `variant` and `folder`.
        out: the report's folder.

    Returns:
        The plots for the page; and remarks: characters without a font, matplotlib's warnings.

    Raises:
        InputError: the folder cannot be written.
    """
    if runs.empty:  # there are evaluations of saved adapters only
        return [], []
    remarks: list[str] = []
    # `families_for` has one remark on missing glyphs; a font without bold letters is no problem.
    with collected("matplotlib", remarks, ignored=("Glyph ", "findfont: ")):
        import matplotlib

        texts = (str(text) for name in _TEXTS for text in runs[name].unique())
        families, without_font = families_for(texts)
        plots = []
        parts = [(part, _lines(part)) for part in by_task(runs)]
        for draw in watched(PLOTS, "plots"):
            with matplotlib.rc_context(style.RC | {"font.family": families}):
                for part, lines in parts:
                    drawings = draw(part, lines)
                    if len(parts) > 1:
                        drawings = (_named(drawn, part) for drawn in drawings)
                    plots += [drawing.write(drawn, out / FOLDER) for drawn in drawings]
    return plots, [*(without_font if plots else ()), *remarks]


def _lines(runs: pd.DataFrame) -> list[Line]:
    few_shot = few_shot_runs(runs)
    return style.choose_lines(runs if few_shot.empty else few_shot)


def _named(drawn: Drawing, runs: pd.DataFrame) -> Drawing:
    """Return a drawing whose file and choice differ from those of the other task."""
    words = wording_of(runs)
    ending = "" if words is IMAGE_WORDS else f"_{words.task}"
    choice = drawn.choice or str(runs["backbone"].iloc[0])
    return replace(drawn, name=f"{drawn.name}{ending}", choice=choice)
