"""The plot of scripts/advantage.py's table."""

from pathlib import Path

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import pandas as pd

SETTINGS = ["shots", "steps", "classes", "pretraining_pictures", "width"]
LABELS = {
    "shots": "shots",
    "steps": "steps of adaptation",
    "classes": "classes",
    "pretraining_pictures": "pictures of pre-training",
    "width": "width of the image tower",
}


def advantage(table: pd.DataFrame, path: Path) -> None:
    """Draw accuracy minus AdamW's along every factor, by density, with standard errors."""
    so = table[table["contender"] == "so"]
    varied = [factor for factor in SETTINGS if (so["factor"] == factor).any()]
    if not varied:
        return
    figure, axes = plt.subplots(
        1, len(varied), figsize=(3 * len(varied) + 1, 3.6), sharey=True, layout="constrained"
    )
    for axis, factor in zip([axes] if len(varied) == 1 else axes, varied, strict=True):
        along = _along(so, factor)
        for density, own in along.groupby("density_ratio"):
            if len(own) < 2:  # the control exists only at the base point
                continue
            own = own.sort_values(factor)
            errors = own["minus_adamw_standard_error"]
            label = f"κ = {density:g}"
            axis.errorbar(
                own[factor], own["minus_adamw_points"], errors, fmt="o-", capsize=2, label=label
            )
        axis.axhline(0, color="#8a8a8a", linewidth=1)
        axis.set_xscale("log")
        values = sorted(along[factor].unique())
        axis.set_xticks(values, [f"{value:g}" for value in values])
        axis.minorticks_off()
        axis.set_xlabel(LABELS[factor])
    first = figure.axes[0]
    first.set_ylabel("SO's accuracy minus AdamW's, points")
    first.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _along(so: pd.DataFrame, factor: str) -> pd.DataFrame:
    """Return all rows that differ only in `factor`, the base point included."""
    others = [name for name in SETTINGS if name != factor]
    own = so[so["factor"] == factor]
    same = (so[others] == own[others].iloc[0]).all(axis=1)
    return so[same]
