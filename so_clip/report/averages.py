"""Means over seeds and over datasets, and the runs whose accuracies are compared."""

import math
from typing import Any

import pandas as pd

from so_clip.data.base_to_new import BASE_TO_NEW
from so_clip.report.read import ROW, RUN

AVERAGE = "average"
# Zero-shot values of two runs count as equal below this difference, in percentage points.
_SAME_POINTS = 0.005


def few_shot_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that are compared: on all classes, with even shots, without repeats."""
    distinct = on_all_classes(runs.drop_duplicates(RUN))
    return distinct[even_shots(distinct)]


def on_all_classes(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs without those of the base-to-new protocol."""
    return runs[runs["protocol"] != BASE_TO_NEW] if "protocol" in runs else runs


def even_shots(runs: pd.DataFrame) -> pd.Series:
    """Return for each run whether all its classes had the same number of training images."""
    if "imbalance" not in runs:
        return pd.Series(True, index=runs.index)
    return runs["imbalance"].isna()


def statistics(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return a tidy table: one line per dataset and table row, with `mean`, `std` and `runs`.

    `std` is the sample standard deviation over seeds, NaN for a single run.
    """
    cells = runs.groupby(["dataset", *ROW], dropna=False)[column].agg(["mean", "std", "count"])
    return cells.rename(columns={"count": "runs"}).reset_index()


def averages(
    runs: pd.DataFrame, column: str, datasets: int
) -> dict[tuple[Any, ...], tuple[float, float, int]]:
    """Return mean, standard deviation and number of seeds of each row's average over datasets.

    Rows without runs on all `datasets` datasets are left out. The deviation is the deviation of the
    seeds' averages, and NaN unless every seed has all datasets.
    """
    means = runs.groupby([*ROW, "dataset"])[column].mean().dropna()
    averages = means.groupby(ROW).agg(["mean", "size"])
    averages = averages[averages["size"] == datasets]["mean"]
    seeds = runs.groupby([*ROW, "seed"])[column].agg(["mean", "count"])
    seeds["whole"] = seeds["count"] == datasets
    spread = seeds.groupby(ROW).agg(
        std=("mean", "std"), runs=("mean", "size"), whole=("whole", "all")
    )
    spreads = dict(zip(spread.index, spread.to_dict("records"), strict=True))
    return {
        key: (mean, row["std"] if row["whole"] else math.nan, int(row["runs"]))
        for key, mean in averages.to_dict().items()
        for row in [spreads[key]]
    }


def combined_interval(half_widths: pd.Series) -> float:
    """Return the half width of the interval of the mean of independent means: √(Σ h²) / n."""
    return math.sqrt(math.fsum(width**2 for width in half_widths)) / len(half_widths)


def intervals(runs: pd.DataFrame, column: str) -> dict[tuple[Any, ...], dict[str, float]]:
    """Return by table row the half width of each dataset's interval, and of the average's.

    Args:
        runs: of sampled tasks. Runs with other seeds have other tasks.
        column: holds the half width of each run's interval.
    """
    found: dict[tuple[Any, ...], dict[str, float]] = {}
    widths = runs.groupby([*ROW, "dataset"])[column].agg(combined_interval)
    for key, of_datasets in widths.groupby(ROW):
        by_dataset = dict(
            zip(of_datasets.index.get_level_values("dataset"), of_datasets, strict=True)
        )
        found[key] = {**by_dataset, AVERAGE: combined_interval(of_datasets)}
    return found


def same_zero_shot(runs: pd.DataFrame, column: str) -> dict[str, float]:
    """Return the value before adaptation by dataset, for datasets where all runs agree."""
    if column not in runs:
        return {}
    values = runs.groupby("dataset")[column].agg(["min", "max"]).dropna()
    same = values["min"][values["max"] - values["min"] < _SAME_POINTS]
    return {str(dataset): float(value) for dataset, value in same.items()}
