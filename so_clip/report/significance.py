"""Whether one method is better than another, or the seeds and the test images say no such thing.

Two questions, two tests, each of runs with the same dataset, even shots and seed:

- seeds: would other few-shot draws show it? Student's paired t over the seeds' differences. Three
  seeds show large and steady differences only.
- images: would other test images show it, for these draws? An image is won by the method that more
  of its runs classify rightly; the exact sign test of wins against losses. Of one seed that is
  McNemar's exact test. With more, an image still counts once: to count it in every seed would take
  the same image for several.

p values are adjusted by Holm's method, for each test by itself: `p_holm` over the pairs of a block
on one dataset (or its average), `p_holm_block` over its pairs on all datasets, by which datasets
are counted. Where a block is so long that only its best row is compared, the figures themselves
chose these pairs out of all: they are adjusted for the number of all, as if the others had p = 1.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from so_clip.errors import InputError
from so_clip.report.averages import few_shot_runs, same_zero_shot
from so_clip.report.progress_bar import watched
from so_clip.report.read import Runs
from so_clip.report.tables import AVERAGE, FIGURES, ZERO_SHOT_TITLE, table_runs
from so_clip.results.run_files import PREDICTIONS_FILE, read_columns

SEEDS, IMAGES = "seeds", "images"
LEVEL = 0.05
# Of a block with more rows only the best is compared, with each of the others, for readers' sake.
MAX_ROWS = 12
# Of predictions.csv, before and after adaptation.
_BEFORE, _AFTER = "zero_shot_prediction", "prediction"

# Reasons against comparisons; more are only counted.
_SHOWN = 5

Right = npt.NDArray[np.bool_]
# By folder and column; None where it cannot be read.
_Read = dict[tuple[str, str], tuple[str, Right] | None]


@dataclass(frozen=True)
class _Result:
    """One run's accuracy, and where its answers are."""

    accuracy_percent: float
    folder: str
    column: str = _AFTER


# By row of the table, dataset and seed.
_Block = dict[str, dict[str, dict[int, _Result]]]


def compare(runs: Runs) -> tuple[pd.DataFrame, list[str]]:
    """Compare the methods of each backbone and number of shots, pair by pair.

    Returns:
        A row a pair, dataset and test: `backbone`, `shots`, `dataset` ("average": of all datasets
        that both have), `first`, `second`, `test`, `seeds`, `difference_points` (first - second),
        `wins` and `losses` of images, `p`, `p_holm`, and `p_holm_block` (none of the average). And
        one line for each comparison that cannot be made, and why.
    """
    frame = few_shot_runs(table_runs(FIGURES[0], runs.frame))
    rows: list[dict[str, Any]] = []
    remarks: dict[str, None] = {}
    blocks = list(frame[frame["shots"] > 0].groupby(["backbone", "shots"]))
    for (backbone, shots), group in watched(blocks, "significance"):
        block = _block(group)
        found = [
            {"backbone": backbone, "shots": shots} | row
            for first, second in _pairs(block)
            for row in _over_seeds(block, first, second)
        ]
        found += [
            {"backbone": backbone, "shots": shots} | row for row in _over_images(block, remarks)
        ]
        rows += _adjusted(found, block)
    columns = (
        "backbone shots dataset first second test seeds difference_points wins losses p p_holm "
        "p_holm_block"
    )
    table = pd.DataFrame(rows, columns=columns.split())
    lines = [f"not compared over images: {reason}" for reason in list(remarks)[:_SHOWN]]
    if len(remarks) > _SHOWN:
        lines.append(f"not compared over images: {len(remarks) - _SHOWN} more runs.")
    return table.astype({"wins": "Int64", "losses": "Int64"}), lines


def _block(runs: pd.DataFrame) -> _Block:
    """Return the runs by row, dataset and seed, with zero-shot CLIP as one more row.

    Its answers are those that the runs gave before they adapted, where these agree.
    """
    block: _Block = defaultdict(lambda: defaultdict(dict))
    columns = ("method_title", "variant", "dataset", "seed", "accuracy_percent", "folder")
    for title, variant, dataset, seed, accuracy, folder in zip(
        *map(runs.get, columns), strict=True
    ):
        name = f"{title} ({variant})" if variant else title
        block[name][dataset][seed] = _Result(accuracy, folder)
    for dataset, accuracy in same_zero_shot(runs, "zero_shot_accuracy_percent").items():
        for name in list(block):
            for seed, result in block[name][dataset].items() if dataset in block[name] else ():
                block[ZERO_SHOT_TITLE][dataset].setdefault(
                    seed, _Result(accuracy, result.folder, _BEFORE)
                )
    return block


def _pairs(block: _Block) -> list[tuple[str, str]]:
    """Return the pairs to compare, in the order of their names."""
    names = sorted(block, key=lambda name: (name == ZERO_SHOT_TITLE, name))
    if len(names) <= MAX_ROWS:
        return list(combinations(names, 2))

    def accuracy(name: str) -> tuple[int, float]:
        means = [
            math.fsum(result.accuracy_percent for result in seeds.values()) / len(seeds)
            for seeds in block[name].values()
        ]
        return len(means), math.fsum(means) / len(means)

    best = max(names, key=accuracy)
    return [(best, name) for name in names if name != best]


def _over_seeds(block: _Block, first: str, second: str) -> Iterator[dict[str, Any]]:
    """Yield a row a dataset that both have with the same seeds, and one of their average."""
    both = {
        dataset: {
            seed: block[first][dataset][seed].accuracy_percent
            - block[second][dataset][seed].accuracy_percent
            for seed in _common(block, first, second, dataset)
        }
        for dataset in block[first]
        if dataset in block[second]
    }
    of_all = set.intersection(*map(set, both.values())) if len(both) > 1 else set()
    if of_all:
        both[AVERAGE] = {
            seed: math.fsum(differences[seed] for differences in both.values()) / len(both)
            for seed in sorted(of_all)
        }
    for dataset, of_seeds in both.items():
        differences = list(of_seeds.values())
        if differences:
            yield {
                **{"dataset": dataset, "first": first, "second": second, "test": SEEDS},
                **{"seeds": len(differences), "p": paired_t(differences)},
                "difference_points": math.fsum(differences) / len(differences),
            }


def _common(block: _Block, first: str, second: str, dataset: str) -> list[int]:
    return sorted(set(block[first][dataset]) & set(block[second][dataset]))


def _over_images(block: _Block, remarks: dict[str, None]) -> Iterator[dict[str, Any]]:
    """Yield a row a pair and dataset; note in `remarks` what stands against one.

    A dataset at a time, so that the answers of no more than its runs are in memory.
    """
    pairs = _pairs(block)
    for dataset in dict.fromkeys(name for row in block.values() for name in row):
        answers: _Read = {}
        for first, second in pairs:
            both = [
                (block[first][dataset][seed], block[second][dataset][seed])
                for seed in _common(block, first, second, dataset)
            ]
            balance = _balance(both, answers, remarks)
            if balance is None:
                continue
            wins, losses = int(np.sum(balance > 0)), int(np.sum(balance < 0))
            yield {
                **{"dataset": dataset, "first": first, "second": second, "test": IMAGES},
                **{"seeds": len(both), "wins": wins, "losses": losses},
                "difference_points": 100.0 * float(np.mean(balance)) / len(both),
                "p": sign_test(wins, losses),
            }


def _balance(
    pairs: Sequence[tuple[_Result, _Result]], answers: _Read, remarks: dict[str, None]
) -> npt.NDArray[np.int16] | None:
    """Return for each image how many more of the first's runs are right than of the second's.

    None where that cannot be told, with a remark if something is amiss.
    """
    results = [result for pair in pairs for result in pair]
    read = [_answers(result, answers, remarks) for result in results]
    known = [each for each in read if each is not None]
    if not known or len(known) < len(read):
        return None
    balance = np.zeros(len(known[0][1]), dtype=np.int16)
    for at, (images, right) in enumerate(known):
        if images != known[0][0]:
            remarks[
                f"{results[0].folder} and {results[at].folder} were not tested on the same images "
                "in the same order."
            ] = None
            return None
        balance += right if at % 2 == 0 else -right.astype(np.int16)
    return balance


def _answers(result: _Result, answers: _Read, remarks: dict[str, None]) -> tuple[str, Right] | None:
    """Return a hash of the images' paths in their order, and which of them are classified right."""
    if (result.folder, result.column) not in answers:
        file = Path(result.folder) / PREDICTIONS_FILE
        columns = (_BEFORE, _AFTER)
        try:
            given = read_columns(file, whole=("label", *columns), texts=("path",))
        except InputError as error:
            remarks[str(error)] = None
            answers |= {(result.folder, column): None for column in columns}
        else:
            paths = hashlib.sha256("\n".join(given["path"]).encode()).hexdigest()
            for column in columns:
                answers[result.folder, column] = paths, given[column] == given["label"]
    return answers[result.folder, result.column]


def _adjusted(rows: Sequence[dict[str, Any]], block: _Block) -> list[dict[str, Any]]:
    """Add `p_holm`, over the pairs of each test and dataset, and `p_holm_block`, over them all."""
    families: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        families["p_holm", row["test"], row["dataset"]].append(at)
        if row["dataset"] != AVERAGE:  # which follows from the others
            families["p_holm_block", row["test"]].append(at)
    pairs = _pairs_in_all(block)
    adjusted = [row | {"p_holm_block": math.nan} for row in rows]
    for (column, _, *dataset), family in families.items():
        names = dataset or [name for name in pairs if name != AVERAGE]
        others = sum(pairs[name] for name in names) - len(family) if len(block) > MAX_ROWS else 0
        known = [rows[at]["p"] for at in family]
        for at, p in zip(family, holm([*known, *[1.0] * others]), strict=False):
            adjusted[at][column] = p
    return adjusted


def _pairs_in_all(block: _Block) -> dict[str, int]:
    """Return by dataset, and of their average, how many pairs of rows there are."""
    rows = [name for row in block.values() for name, seeds in row.items() if seeds]
    pairs = {name: math.comb(rows.count(name), 2) for name in dict.fromkeys(rows)}
    return pairs | {AVERAGE: math.comb(len(block), 2)}


def summary(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Return the comparisons for people: a row a pair of a block.

    Seeds decide over the average of the datasets (or over the one there is), images over each
    dataset: how many the first wins, the second wins, and none does, at p < 0.05 after Holm over
    all pairs and datasets of the block.
    """
    rows = []
    pairs = comparisons.groupby(["backbone", "shots", "first", "second"], sort=False)
    for (backbone, shots, first, second), group in pairs:
        seeds = group[group["test"] == SEEDS]
        whole = seeds[seeds["dataset"] == AVERAGE]
        overall = (whole if len(whole) else seeds).to_dict("records")[:1]
        images = group[group["test"] == IMAGES]
        clear = images["p_holm_block"] < LEVEL
        better = int((clear & (images["wins"] > images["losses"])).sum())
        worse = int((clear & (images["wins"] < images["losses"])).sum())
        rows.append(
            {
                **{"backbone": backbone, "shots": shots, "method": first, "against": second},
                **{"difference (points)": _of(overall, "difference_points")},
                **{"seeds": _of(overall, "seeds"), "p over seeds": _of(overall, "p")},
                **{"p (Holm)": _of(overall, "p_holm"), "images: better on": better},
                **{"worse on": worse, "undecided on": len(images) - better - worse},
            }
        )
    return pd.DataFrame(rows)


def _of(rows: Sequence[Mapping[Any, Any]], key: str) -> Any:
    return rows[0][key] if rows else math.nan


def paired_t(differences: Sequence[float]) -> float:
    """Return the two-sided p of Student's t test that paired differences have mean 0.

    NaN for fewer than two, and where all are the same but not 0: nothing is known of their spread.

    Source: Student, The probable error of a mean, Biometrika 6, 1908; the distribution for a whole
    number of degrees of freedom is Abramowitz and Stegun's 26.7.3 and 26.7.4.
    """
    n = len(differences)
    if n < 2:
        return math.nan
    mean = math.fsum(differences) / n
    # Rounding alone must not look like spread.
    if max(differences) - min(differences) <= 1e-9 * max(map(abs, differences)):
        return math.nan if mean else 1.0
    variance = math.fsum((each - mean) ** 2 for each in differences) / (n - 1)
    return 1.0 - _within(abs(mean) / math.sqrt(variance / n), n - 1)


def _within(t: float, degrees: int) -> float:
    """Return the probability that Student's t lies between -t and t."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine, odd = math.cos(angle), degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 + odd, degrees - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    series = math.sin(angle) * total
    return min(1.0, 2 / math.pi * (angle + series) if odd else series)


def sign_test(wins: int, losses: int) -> float:
    """Return the two-sided p that wins and losses are equally likely; 1 where there are none.

    p = min(1, 2 P(X <= min(wins, losses))) for X binomial of n = wins + losses and 1/2. Of two
    classifiers' answers to the same images this is McNemar's exact test.

    Source: McNemar, Note on the sampling error of the difference between correlated proportions,
    Psychometrika 12, 1947.
    """
    n = wins + losses
    whole = math.lgamma(n + 1) - n * math.log(2)
    tail = math.fsum(
        math.exp(whole - math.lgamma(k + 1) - math.lgamma(n - k + 1))
        for k in range(min(wins, losses) + 1)
    )
    return min(1.0, 2 * tail)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for their number, in their order; NaN stays and does not count.

    The k-th smallest of m becomes max over i <= k of min(1, (m - i + 1) p_i).

    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    known = sorted((p, at) for at, p in enumerate(p_values) if not math.isnan(p))
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, at) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[at] = largest
    return adjusted
