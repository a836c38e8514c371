"""What few test examples can show: intervals of accuracies, and notes below tables of sentences."""

from typing import Any

import pandas as pd

from so_clip.report.averages import statistics
from so_clip.report.read import ROW
from so_clip.report.wording import SENTENCE_WORDS, wording_of
from so_clip.results.interval import wilson

SHOTS_NOTE = (
    "The number of examples is that of all training examples together, not of each class. ± is "
    "the standard deviation over seeds: over draws of training examples and random numbers."
)
INTERVAL_NOTE = (
    "[low, high] is Wilson's 95 % interval over test examples, at the mean accuracy over seeds and "
    "the number of test examples of one run. Seeds share their test examples, so these are not "
    "counted per seed. Rows share them too, so paired tests compare rows, not these intervals."
)
# The fewest examples that one of two runs must win, if it loses none, for p < 0.05 in the two-sided
# exact sign test: 2 / 2^6 = 0.031, and 2 / 2^5 is above 0.05.
LEAST_WINS = 6

Key = tuple[Any, ...]


def item_intervals(runs: pd.DataFrame) -> dict[tuple[Key, str], tuple[float, float]]:
    """Return by row and dataset the 95 % interval of the mean accuracy over test examples.

    Datasets whose runs have different numbers of test examples are left out.
    """
    items = _items(runs)
    return {
        (tuple(values[name] for name in ROW), values["dataset"]): wilson(
            values["mean"] / 100 * items[values["dataset"]], items[values["dataset"]]
        )
        for values in statistics(runs, "accuracy_percent").to_dict("records")
        if values["dataset"] in items
    }


def item_notes(runs: pd.DataFrame) -> list[str]:
    """Return sentences about shots and intervals, and about the test examples of each dataset."""
    items = _items(runs)
    notes = [SHOTS_NOTE, *([INTERVAL_NOTE] if items else [])]
    means = statistics(runs, "accuracy_percent")
    for dataset, count in items.items():
        text = f"{dataset}: one of {count} test examples is {100 / count:.2f} points."
        rows = means[means["dataset"] == dataset]
        larger = _larger_class(runs[runs["dataset"] == dataset])
        if larger is not None:
            intervals = [wilson(mean / 100 * count, count) for mean in rows["mean"]]
            holding = sum(low <= larger <= high for low, high in intervals)
            text += (
                f" The largest class has {larger:.2f} % of them; the intervals of {holding} of "
                f"{len(rows)} rows hold it."
            )
        notes.append(text)
        notes += [
            _about_differences(dataset, int(shots), count, block["mean"])
            for shots, block in rows.groupby("shots")
            if len(block) > 1
        ]
    return notes


def about_items(runs: pd.DataFrame) -> str:
    """Return a sentence below a plot about the chance of the test examples; empty for images."""
    if wording_of(runs) is not SENTENCE_WORDS:
        return ""
    widths = [high - low for low, high in item_intervals(runs).values()]
    if not widths:
        return ""
    reach = f"{min(widths) / 2:.1f}", f"{max(widths) / 2:.1f}"
    points = " to ".join(dict.fromkeys(reach))
    return f" The 95 % interval of an accuracy over test examples is about ± {points} points."


def cut_notes(runs: pd.DataFrame) -> list[str]:
    """Return a sentence if sentences were cut to the encoder's length, else nothing."""
    keys = [key for key in ("truncated_train", "truncated_test") if key in runs]
    counts = runs[keys].apply(pd.to_numeric, errors="coerce").fillna(0)
    affected = int((counts > 0).any(axis=1).sum())
    if not affected:
        return []
    most = " and ".join(
        f"{count:.0f} {'training' if key.endswith('train') else 'test'} examples"
        for key, count in counts.max().items()
        if count
    )
    return [f"{affected} of {len(runs)} runs cut examples to model.max_length, up to {most}."]


def _about_differences(dataset: str, shots: int, items: int, means: pd.Series) -> str:
    """Return a sentence that counts the rows that are too close to the best one."""
    least = 100 * LEAST_WINS / items
    # Rounding must not decide about a difference of exactly six examples.
    close = int((means.max() - means < least - 1e-9).sum()) - 1
    return (
        f"{dataset}, {shots} examples: two single runs must differ by {LEAST_WINS} test examples "
        f"({least:.2f} points) or more before an exact test can find p < 0.05; {close} of the "
        f"{len(means) - 1} other rows are closer than that to the best row."
    )


def _items(runs: pd.DataFrame) -> dict[str, int]:
    """Return the number of test examples by dataset, for datasets where all runs agree."""
    if "test_images" not in runs:
        return {}
    counts = runs.assign(items=pd.to_numeric(runs["test_images"], errors="coerce"))
    found = counts.groupby("dataset")["items"].agg(["min", "max", "count", "size"])
    same = found[(found["min"] == found["max"]) & (found["count"] == found["size"])]
    return {str(name): int(count) for name, count in same["min"].items() if count >= 1}


def _larger_class(runs: pd.DataFrame) -> float | None:
    """Return the percentage of the larger class; None if the runs do not agree on it."""
    if "majority_percent" not in runs:
        return None
    values = pd.to_numeric(runs["majority_percent"], errors="coerce").dropna()
    return float(values.iloc[0]) if values.nunique() == 1 else None
