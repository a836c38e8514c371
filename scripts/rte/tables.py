"""The tables of the experiment, from the rows of finished runs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from scripts.rte.plan import Contender, contenders, grid, tuned
from so_clip.report.published import published_sentences
from so_clip.report.read import read_runs
from so_clip.report.significance import compare
from so_clip.results.interval import half_width, wilson

Row = dict[str, object]


def chosen_rates(rates: pd.DataFrame) -> dict[str, float]:
    """Return by method the rate with the best accuracy on left-over training pairs.

    Among equal rates, the smallest is taken.
    """
    means = rates.groupby(["method", "lr"])["accuracy_percent"].mean().reset_index()
    best = means.sort_values(["accuracy_percent", "lr"], ascending=[False, True])
    return {str(row["method"]): float(row["lr"]) for row in best[::-1].to_dict("records")}


def rate_rows(rates: pd.DataFrame) -> list[Row]:
    """Return a row for each method and rate that was tried."""
    chosen = chosen_rates(rates)
    return [
        {
            **_about(contender),
            **run[["lr", "seed", "tested_on"]],
            "pairs": run["test_images"],
            **run[["accuracy_percent", "accuracy_low_percent", "accuracy_high_percent"]],
            **run[["steps", "final_loss", "train_seconds"]],
            "is_chosen": run["lr"] == chosen[contender.method],
        }
        for contender in tuned()
        for _, run in of_contender(rates, contender).sort_values("lr").iterrows()
    ]


def method_rows(runs: pd.DataFrame) -> list[Row]:
    """Return a row for each contender: means over seeds, and two 95 % intervals.

    `seeds_interval_points` is half the width over seeds by Student's t; `items_low_percent` and
    `items_high_percent` are Wilson's at the mean accuracy, with the pairs of one run.
    """
    rows: list[Row] = []
    for contender in contenders():
        own = of_contender(runs, contender)
        if own.empty:
            continue
        accuracy, pairs = own["accuracy_percent"], int(own["test_images"].iloc[0])
        low, high = wilson(accuracy.mean() / 100 * pairs, pairs)
        rows.append(
            {
                **_about(contender),
                "lr": own["lr"].iloc[0],
                "seeds": len(own),
                "pairs": pairs,
                "accuracy_percent": accuracy.mean(),
                "accuracy_percent_std": accuracy.std(),
                "accuracy_percent_min": accuracy.min(),
                "accuracy_percent_max": accuracy.max(),
                "seeds_interval_points": half_width([*accuracy]) if len(own) > 1 else None,
                "items_low_percent": low,
                "items_high_percent": high,
                "majority_percent": own["majority_percent"].iloc[0],
                "trainable_parameters": own["trainable_parameters"].iloc[0],
                **own[["steps", "final_loss", "train_seconds", "peak_memory_mib"]].mean(),
                "truncated_test": own["truncated_test"].iloc[0],
            }
        )
    return rows


def test_rows(runs: pd.DataFrame, folder: Path) -> list[Row]:
    """Return the report's paired tests between all contenders, over seeds and over pairs."""
    own = {contender.title: of_contender(runs, contender) for contender in contenders()}
    titles = {path: title for title, found in own.items() for path in found["folder"]}
    if not titles:
        return []
    read = read_runs(folder, [Path(path) for path in titles])
    frame = read.frame.assign(method_title=read.frame["folder"].map(titles), variant="")
    rows, remarks = compare(replace(read, frame=frame))
    for line in (*read.skipped, *remarks):
        print(line)
    return rows.drop(columns=["backbone", "shots", "p_holm_block"]).to_dict("records")


def grid_rows(runs: pd.DataFrame) -> list[Row]:
    """Return a row for each finished cell of the grid, with the published values beside it.

    Only seeds that every finished cell has are averaged.
    """
    cells = {cell: of_contender(runs, cell) for cell in grid()}
    cells = {cell: own for cell, own in cells.items() if len(own)}
    shared = set.intersection(*(set(own["seed"]) for own in cells.values())) if cells else set()
    return [
        {
            **_about(cell),
            "lr": own["lr"].iloc[0],
            **_over_seeds(own[own["seed"].isin(shared)]),
            **_published(cell),
        }
        for cell, own in cells.items()
    ]


def official_rows(runs: pd.DataFrame) -> list[Row]:
    """Return a row for each run of the official settings, with the published values beside it."""
    rows: list[Row] = []
    for contender in contenders():
        for _, run in of_contender(runs, contender).iterrows():
            keys = ("lr", "seed", "accuracy_percent", "accuracy_low_percent")
            rows.append(
                {
                    **_about(contender),
                    **run[[*keys, "accuracy_high_percent", "steps", "stop_reason", "final_loss"]],
                    **run[["train_seconds", "peak_memory_mib"]],
                    **_published(contender),
                }
            )
    return rows


def at_rates(runs: pd.DataFrame, rates: dict[str, float], seeds: Sequence[int]) -> pd.DataFrame:
    """Return the runs at the chosen rates with the given seeds."""
    if runs.empty:
        return runs
    chosen = runs["lr"] == runs["method"].map(rates)
    return runs[chosen & runs["seed"].isin(seeds)].sort_values("seed")


def of_contender(runs: pd.DataFrame, contender: Contender) -> pd.DataFrame:
    """Return the runs of a contender."""
    found = runs[runs["method"] == contender.method]
    for key, value in (
        ("density_ratio", contender.density_ratio),
        ("T", contender.T),
        ("rank", contender.rank),
    ):
        if value is not None:
            found = found[found[key] == value]
    return found


def _about(contender: Contender) -> Row:
    return {
        "method": contender.method,
        "title": contender.title,
        "density_ratio": contender.density_ratio,
        "T": contender.T,
        "rank": contender.rank,
    }


def _over_seeds(own: pd.DataFrame) -> Row:
    pairs = int(own["test_images"].iloc[0])
    accuracy = own["accuracy_percent"]
    low, high = wilson(accuracy.mean() / 100 * pairs, pairs)
    return {
        "seeds": len(own),
        "accuracy_percent": accuracy.mean(),
        "accuracy_percent_std": accuracy.std(),
        "items_low_percent": low,
        "items_high_percent": high,
        **own[["steps", "final_loss", "train_seconds"]].mean(),
    }


def _published(contender: Contender) -> Row:
    """Return the published steps and accuracy, with bert-base-uncased; None if there are none."""
    known = published_sentences().set_index("variant")
    variant = f"adapter.rank={contender.rank}"
    if contender.T is not None:
        variant = f"optimizer.T={contender.T}, optimizer.density_ratio={contender.density_ratio}"
    found = known.loc[variant] if variant in known.index else {}
    return {
        "published_steps": found.get("steps"),
        "published_accuracy_percent": found.get("accuracy_percent"),
    }
