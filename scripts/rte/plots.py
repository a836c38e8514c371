"""The plot of the experiment: every run's accuracy, and the interval over pairs."""

from pathlib import Path

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from scripts.rte.plan import contenders
from scripts.rte.tables import of_contender

_BLUE, _GRAY, _ORANGE = "#2a6fbb", "#8a8a8a", "#c8641e"


def accuracies(table: pd.DataFrame, runs: pd.DataFrame, path: Path) -> None:
    """Draw each contender's mean with its interval over pairs, and one dot for each seed.

    Args:
        table: rte_methods.csv.
        runs: the rows of its runs.
        path: of the picture.
    """
    rows = table.iloc[::-1].reset_index(drop=True)
    by_title = {each.title: of_contender(runs, each) for each in contenders()}
    figure, axis = plt.subplots(figsize=(6.4, 0.34 * len(rows) + 1), layout="constrained")
    majority = rows["majority_percent"].iloc[0]
    axis.axvline(majority, color=_GRAY, linewidth=1)
    axis.annotate(
        "larger class", (majority, 1), xycoords=("data", "axes fraction"), fontsize=7,
        color=_GRAY, xytext=(2, 1), textcoords="offset points",
    )  # fmt: skip
    for place, row in rows.iterrows():
        colour = _ORANGE if row["method"] == "so" else _BLUE
        interval = [row["items_low_percent"], row["items_high_percent"]]
        axis.plot(interval, [place, place], color=colour, linewidth=5, alpha=0.25)
        seeds = by_title[row["title"]]["accuracy_percent"]
        spread = np.linspace(-0.18, 0.18, len(seeds)) if len(seeds) > 1 else [0.0]
        axis.scatter(seeds, np.array(spread) + place, s=9, color=colour)
        axis.plot([row["accuracy_percent"]], [place], "|", color=colour, ms=14, mew=2)
    axis.set_yticks(range(len(rows)), rows["title"])
    axis.set_xlabel("accuracy, % (dots: seeds; bar: 95 % over pairs)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, axis="x")
    axis.set_axisbelow(True)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
