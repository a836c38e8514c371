"""The tables of the experiment: means over tasks with intervals, and over seeds."""

import math
from collections.abc import Sequence

import pandas as pd

from scripts.smat.plan import Contender
from so_clip.results.interval import quantile

MEAN = "mean of the targets"

Row = dict[str, object]


def task_rows(tasks: pd.DataFrame, contenders: Sequence[Contender], reference: str) -> list[Row]:
    """Return a row for each contender and target, and one for the mean of the targets.

    The difference to the reference is that of the same tasks, as many as both have.

    Args:
        tasks: one row for each contender, target and task.
        contenders: in the order of the table.
        reference: the name of a contender.
    """
    compared = _by_target(tasks, reference)
    rows: list[Row] = []
    for contender in contenders:
        own = tasks[tasks["contender"] == contender.name]
        scores = _by_target(tasks, contender.name)
        paired = {
            target: values - compared[target].reindex(values.index)
            for target, values in scores.items()
        }
        paired = {target: values.dropna() for target, values in paired.items()}
        about = {
            "contender": contender.name,
            "title": contender.title,
            "lr": own["lr"].iloc[0],
            "trained_entries": own["trainable_parameters"].iloc[0],
        }
        for target, values in (*scores.items(), (MEAN, None)):
            chosen = scores if values is None else {target: values}
            differences = paired if values is None else {target: paired[target]}
            mean, interval = mean_and_interval(list(chosen.values()))
            difference, difference_interval = mean_and_interval(list(differences.values()))
            rows.append(
                {
                    **about,
                    "dataset": target,
                    "tasks": sum(map(len, chosen.values())),
                    "accuracy_percent": mean,
                    "interval_percent": interval,
                    f"minus_{reference}_points": difference,
                    f"minus_{reference}_interval": difference_interval,
                    "train_seconds_per_task": own["train_seconds"].mean(),
                }
            )
    return rows


def mean_and_interval(groups: Sequence[pd.Series]) -> tuple[float, float]:
    """Return the mean of the groups' means, and half the width of its 95 % interval.

        t(0.975, f) / G · sqrt(sum over G groups of v),  v = variance / tasks
        f = (sum of v)² / (sum of v² / (tasks - 1)), by Welch and Satterthwaite

    A group with one task has no interval: nan.
    """
    mean = sum(values.mean() for values in groups) / len(groups)
    variances = [values.var() / len(values) for values in groups]
    total = sum(variances)
    if not total:  # all values of each group are equal
        return mean, 0.0
    pairs = zip(variances, groups, strict=True)
    freedom = total**2 / sum(variance**2 / max(1, len(values) - 1) for variance, values in pairs)
    return mean, quantile(freedom) * math.sqrt(total) / len(groups)


def all_way_rows(runs: pd.DataFrame, contenders: Sequence[Contender]) -> list[Row]:
    """Return a row for each contender and target, and one for the mean of the targets.

    The standard deviation is that over seeds; for the mean, that of each seed's mean.
    """
    rows: list[Row] = []
    for contender in contenders:
        own = runs[runs["contender"] == contender.name]
        # A method that draws nothing has one run for all seeds.
        groups = [*own.groupby("dataset", sort=False), (MEAN, None)]
        for target, found in groups:
            if found is None:
                by_seed = own.groupby("seed", dropna=False)["accuracy_percent"].mean()
            else:
                by_seed = found.set_index("seed")["accuracy_percent"]
            rows.append(
                {
                    "contender": contender.name,
                    "title": contender.title,
                    "lr": own["lr"].iloc[0],
                    "dataset": target,
                    "seeds": len(by_seed),
                    "accuracy_percent": by_seed.mean(),
                    "accuracy_percent_std": by_seed.std(),
                }
            )
    return rows


def _by_target(tasks: pd.DataFrame, name: str) -> dict[str, pd.Series]:
    """Return the accuracies of a contender's tasks by target, indexed by task."""
    own = tasks[tasks["contender"] == name]
    return {
        str(target): found.set_index("task")["accuracy_percent"]
        for target, found in own.groupby("dataset", sort=False)
    }
