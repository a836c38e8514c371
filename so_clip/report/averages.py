"""Means over seeds and over datasets, and the runs whose accuracies are compared."""

import math
from typing import Any

import pandas as pd

from so_clip.data.base_to_new import BASE_TO_NEW
from so_clip.report.read import ROW, RUN

# Zero-shot figures of two runs that differ by less are the same.
_SAME_POINTS = 0.005


def few_shot_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs on all classes with even shots, each once: what is compared."""
    once = on_all_classes(runs.drop_duplicates(RUN))
    return once[even_shots(once)]


def on_all_classes(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs but those of the base-to-new protocol."""
    return runs[runs["protocol"] != BASE_TO_NEW] if "protocol" in runs else runs


def even_shots(runs: pd.DataFrame) -> pd.Series:
    """Say of each run whether all classes had the same number of training images."""
    if "imbalance" not in runs:
        return pd.Series(True, index=runs.index)
    return runs["imbalance"].isna()


def statistics(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return the tidy table: a row for each dataset and table row, with `mean`, `std` and `runs`.

    `std` is the sample standard deviation over seeds, empty for a single run.
    """
    cells = runs.groupby(["dataset", *ROW], dropna=False)[column].agg(["mean", "std", "count"])
    return cells.rename(columns={"count": "runs"}).reset_index()


def averages(
    runs: pd.DataFrame, column: str, datasets: int
) -> dict[tuple[Any, ...], tuple[float, float, int]]:
    """Return mean, deviation and seeds of each table row's average, where it has all datasets.

    Its deviation is that of the seeds' averages, where every seed has all datasets.
    """
    means = runs.groupby([*ROW, "dataset"])[column].mean().dropna()
    averages = means.groupby(ROW).agg(["mean", "size"])
    averages = averages[averages["size"] == datasets]["mean"]
    of_seeds = runs.groupby([*ROW, "seed"])[column].agg(["mean", "count"])
    of_seeds["whole"] = of_seeds["count"] == datasets
    spread = of_seeds.groupby(ROW).agg(
        std=("mean", "std"), runs=("mean", "size"), whole=("whole", "all")
    )
    spreads = dict(zip(spread.index, spread.to_dict("records"), strict=True))
    return {
        key: (mean, each["std"] if each["whole"] else math.nan, int(each["runs"]))
        for key, mean in averages.to_dict().items()
        for each in [spreads[key]]
    }


def same_zero_shot(runs: pd.DataFrame, column: str) -> dict[str, float]:
    """Return by dataset what all runs measured before they adapted, where they agree."""
    if column not in runs:
        return {}
    values = runs.groupby("dataset")[column].agg(["min", "max"]).dropna()
    same = values["min"][values["max"] - values["min"] < _SAME_POINTS]
    return {str(dataset): float(value) for dataset, value in same.items()}
