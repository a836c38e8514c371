"""The report's plots: each as SVG and PNG for print, its numbers as CSV, and as SVG for the page.

A plot is made only where the runs have something to show.
"""

from pathlib import Path

import pandas as pd

from so_clip.errors import InputError
from so_clip.report.averages import few_shot_runs
from so_clip.report.plots import drawing, style
from so_clip.report.plots.accuracy import accuracy_vs_memory, accuracy_vs_shots
from so_clip.report.plots.drawing import Plot
from so_clip.report.plots.kappa_t import kappa_t
from so_clip.report.plots.support import support
from so_clip.report.plots.training import accuracy_curves, loss_curves
from so_clip.report.progress_bar import watched

FOLDER = "plots"
FIGURES = (
    accuracy_vs_shots,
    accuracy_vs_memory,
    kappa_t,
    loss_curves,
    accuracy_curves,
    support,
)


def write(runs: pd.DataFrame, out: Path) -> list[Plot]:
    """Draw all that the runs have something for into `out`/plots, and return it for the page.

    Args:
        runs: a row a run: the columns of metrics.json, `variant` and `folder`.
        out: the report's folder.

    Raises:
        InputError: matplotlib is not there, or the folder cannot be written.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise InputError(
            f"the plots need {error.name}, which is not installed. "
            "Get it with: pip install 'so-clip[report]'"
        ) from error
    few_shot = few_shot_runs(runs)
    lines = style.choose_lines(runs if few_shot.empty else few_shot)
    plots = []
    for figures in watched(FIGURES, "plots"):
        with matplotlib.rc_context(style.RC):
            plots += [drawing.write(each, out / FOLDER) for each in figures(runs, lines)]
    return plots
