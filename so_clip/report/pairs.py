"""Tests between methods for readers: one line for each pair, and what the columns mean."""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from so_clip.report.averages import AVERAGE
from so_clip.report.significance import MAX_ROWS, SEEDS
from so_clip.report.wording import IMAGE_WORDS, SENTENCE_WORDS, by_task, wording_of

LEVEL = 0.05
_CAPTION = (
    "Each row compares two methods; the difference is the first accuracy minus the second. A p "
    "below 0.05 means that chance is an unlikely reason for the difference; a larger p means "
    "that these runs cannot tell. "
)
_LONG_BLOCKS = (
    f"In a block with more than {MAX_ROWS} rows the best row is compared with every other row, and "
    "p is adjusted for all pairs of the block."
)
IMAGES_CAPTION = (
    f"{_CAPTION}Over seeds: Student's paired t test of the average over "
    "datasets; with three seeds it finds only large and steady differences. Over test images: "
    "the exact sign test on each dataset (McNemar's test if there is one seed), p < 0.05 after "
    "Holm over all pairs and datasets of the block. p (Holm) over seeds is adjusted over all "
    f"pairs of the block. {_LONG_BLOCKS} Rows with uneven shots are not compared."
)
SENTENCES_CAPTION = (
    f"{_CAPTION}Over seeds: Student's paired t test of the accuracies of the shared seeds. Over "
    "examples: a method wins a test example if more of its runs are right on it, and the exact "
    "sign test compares won with lost examples (McNemar's test if there is one seed). p (Holm) is "
    f"adjusted over all pairs of the block on the dataset. {_LONG_BLOCKS}"
)


@dataclass(frozen=True)
class Pairs:
    """The comparisons of the runs of one task.

    Attributes:
        name, title, caption: of the table.
        frame: one line for each pair; its first `texts` columns are no numbers.
    """

    name: str
    title: str
    caption: str
    frame: pd.DataFrame
    texts: int


def pairs_of(runs: pd.DataFrame, comparisons: pd.DataFrame) -> list[Pairs]:
    """Return the comparisons of runs on images, and of runs on sentences, if there are any."""
    found = []
    for part in by_task(runs):
        lines = comparisons[comparisons["backbone"].isin(part["backbone"])]
        if lines.empty:
            continue
        if wording_of(part) is SENTENCE_WORDS:
            frame = summary_of_sentences(lines)
            name, title = "significance-sentences", "Significance of sentences"
            found.append(Pairs(name, title, SENTENCES_CAPTION, frame, texts=5))
        else:
            frame = summary(lines)
            found.append(Pairs("significance", "Significance", IMAGES_CAPTION, frame, texts=4))
    return found


def summary(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Return one line for each pair of a block of runs on images, for readers.

    The test over seeds is shown for the average over datasets (or for the only dataset). The test
    over images counts the datasets on which the first method wins, loses, or neither, at p < 0.05
    after Holm over all pairs and datasets of the block.
    """
    rows = []
    pairs = comparisons.groupby(["backbone", "shots", "first", "second"], sort=False)
    for (backbone, shots, first, second), group in pairs:
        seeds = group[group["test"] == SEEDS]
        average = seeds[seeds["dataset"] == AVERAGE]
        overall: dict[Any, Any] = next(
            iter((average if len(average) else seeds).to_dict("records")), {}
        )
        images = group[group["test"] == IMAGE_WORDS.items]
        clear = images["p_holm_block"] < LEVEL
        better = int((clear & (images["wins"] > images["losses"])).sum())
        worse = int((clear & (images["wins"] < images["losses"])).sum())
        rows.append(
            {
                "backbone": backbone,
                "shots": shots,
                "method": first,
                "against": second,
                "difference (points)": overall.get("difference_points", math.nan),
                "seeds": overall.get("seeds", math.nan),
                "p over seeds": overall.get("p", math.nan),
                "p (Holm)": overall.get("p_holm", math.nan),
                "images: better on": better,
                "worse on": worse,
                "undecided on": len(images) - better - worse,
            }
        )
    return pd.DataFrame(rows)


def summary_of_sentences(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Return one line for each pair and dataset of a block of runs on sentences, for readers.

    Datasets of sentences are few and small, so the numbers of won and lost examples are shown.
    """
    rows = []
    columns = ["backbone", "shots", "dataset", "first", "second"]
    for (backbone, shots, dataset, first, second), group in comparisons.groupby(
        columns, sort=False
    ):
        found: dict[Any, Any] = group.set_index("test").to_dict("index")
        seeds, examples = found.get(SEEDS, {}), found.get(SENTENCE_WORDS.items, {})
        rows.append(
            {
                "backbone": backbone,
                "examples": shots,
                "dataset": dataset,
                "method": first,
                "against": second,
                "difference (points)": seeds.get("difference_points", math.nan),
                "seeds": seeds.get("seeds", math.nan),
                "p over seeds": seeds.get("p", math.nan),
                "p over seeds (Holm)": seeds.get("p_holm", math.nan),
                "won": examples.get("wins", math.nan),
                "lost": examples.get("losses", math.nan),
                "p over examples": examples.get("p", math.nan),
                "p over examples (Holm)": examples.get("p_holm", math.nan),
            }
        )
    return pd.DataFrame(rows)
