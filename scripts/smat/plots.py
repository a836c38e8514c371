"""The plots of the experiment: accuracies with intervals, and the experts' masks."""

from pathlib import Path

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.smat.tables import MEAN

_BLUE, _ORANGE = "#2a6fbb", "#c8641e"


def accuracies(table: pd.DataFrame, path: Path, title: str) -> None:
    """Draw each contender's mean accuracy over the targets, with its interval."""
    means = table[table["dataset"] == MEAN].iloc[::-1]
    figure, axis = plt.subplots(figsize=(6, 0.34 * len(means) + 1), layout="constrained")
    colours = [_ORANGE if name.startswith("smat") else _BLUE for name in means["contender"]]
    places = np.arange(len(means))
    axis.barh(places, means["accuracy_percent"], color=colours, height=0.62, alpha=0.85)
    axis.errorbar(
        means["accuracy_percent"],
        places,
        xerr=means["interval_percent"],
        fmt="none",
        ecolor="#333333",
        capsize=2,
    )
    axis.set_yticks(places, means["title"])
    axis.set_xlabel("accuracy, % (95 % interval)")
    axis.set_title(title, fontsize=10)
    _plain(axis)
    _save(figure, path)


def masks(rows: pd.DataFrame, overlap: pd.DataFrame, path: Path) -> None:
    """Draw where the masks put their weights, and how the experts overlap.

    Args:
        rows: masks.csv of a meta-training.
        overlap: its overlap.csv.
        path: of the picture.
    """
    kept = rows.assign(kept=rows["kept_share"] * rows["entries"])
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(11, 3.4), layout="constrained", width_ratios=(1.25, 1, 1)
    )
    _by_role_and_block(left, kept)
    _by_expert(middle, kept)
    _overlaps(right, kept, overlap)
    _save(figure, path)


def _by_role_and_block(axis: Axes, kept: pd.DataFrame) -> None:
    """Draw the share of the entries that a mask keeps, mean over experts."""
    shares = _share(kept, ["role", "block"]).unstack("block") * 100
    shares = shares.reindex(dict.fromkeys(kept["role"]))
    image = axis.imshow(shares.to_numpy(), cmap="Blues", vmin=0, aspect="auto")
    middle = np.nanmax(shares.to_numpy()) / 2
    for (row, column), share in np.ndenumerate(shares.to_numpy()):
        if np.isfinite(share):
            colour = "white" if share > middle else "#222222"
            axis.text(column, row, f"{share:.0f}", ha="center", va="center", color=colour, size=8)
    axis.set_xticks(range(len(shares.columns)), [f"{int(block) + 1}" for block in shares.columns])
    axis.set_yticks(range(len(shares.index)), [role.replace("_", " ") for role in shares.index])
    axis.set_xlabel("block")
    axis.set_title("entries that a mask keeps, %", fontsize=10)
    axis.figure.colorbar(image, ax=axis, shrink=0.8)


def _by_expert(axis: Axes, kept: pd.DataFrame) -> None:
    """Draw the share of each role in what an expert keeps, against its share of all entries."""
    sums = kept.groupby(["role", "expert"])["kept"].sum().unstack("expert")
    sums = sums.reindex(dict.fromkeys(kept["role"]))
    shares = 100 * sums / sums.sum()
    all_entries = kept[kept["expert"] == 0].groupby("role")["entries"].sum().reindex(sums.index)
    places = np.arange(len(shares))
    width = 0.8 / shares.shape[1]
    for number, expert in enumerate(shares):
        offset = (number - (shares.shape[1] - 1) / 2) * width
        tone = 0.35 + 0.6 * number / max(1, shares.shape[1] - 1)
        axis.bar(places + offset, shares[expert], width, color=_BLUE, alpha=tone, label=f"{expert}")
    axis.plot(places, 100 * all_entries / all_entries.sum(), "k_", ms=20, label="all entries")
    axis.set_xticks(places, [role.replace("_", "\n") for role in shares.index], fontsize=8)
    axis.set_title("share of each role in an expert, %", fontsize=10)
    axis.set_ylim(0, 1.45 * axis.get_ylim()[1])  # room for the legend
    axis.legend(fontsize=7, title="expert", title_fontsize=7, ncols=3, handlelength=1.2)
    _plain(axis)


def _overlaps(axis: Axes, kept: pd.DataFrame, overlap: pd.DataFrame) -> None:
    """Draw the Jaccard index of each pair; below it that of random masks of the same sizes."""
    density = (
        kept.groupby("expert")["kept"].sum() / kept.groupby("expert")["entries"].sum()
    ).to_numpy()
    count = len(density)
    values = np.full((count, count), np.nan)
    for expert, other, share in overlap[["expert", "other", "overlap"]].itertuples(index=False):
        values[int(expert), int(other)] = values[int(other), int(expert)] = share
    axis.imshow(values, cmap="Oranges", vmin=0, vmax=max(0.4, 1.6 * float(np.nanmax(values))))
    for (row, column), share in np.ndenumerate(values):
        if row != column:
            both = density[row] * density[column]
            chance = both / (density[row] + density[column] - both)
            text = f"{share:.2f}\n({chance:.2f})"
            axis.text(column, row, text, ha="center", va="center", size=8)
    axis.set_xticks(range(count))
    axis.set_yticks(range(count))
    axis.set_xlabel("expert")
    axis.set_title("overlap of two experts\n(of random masks)", fontsize=10)


def _share(kept: pd.DataFrame, keys: list[str]) -> pd.Series:
    groups = kept.groupby(keys)
    return groups["kept"].sum() / groups["entries"].sum()


def _plain(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
