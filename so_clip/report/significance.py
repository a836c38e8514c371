"""Test whether one method is better than another, over seeds and over test items.

Both tests compare runs with the same dataset, even shots and the same seed:

- seeds: would other few-shot draws show the difference? Student's paired t test of the differences
  by seed. With three seeds it finds only large and steady differences.
- images (examples, for runs on sentences): would other test images show it, for these draws? The
  method with more correct runs on an image wins that image; the exact sign test compares wins with
  losses. With one seed this is McNemar's exact test. An image counts once, however many seeds there
  are, because the same image under several seeds is not an independent sample.

Holm's method adjusts p for each test separately: `p_holm` over the pairs of a block on one dataset
(or on the average), `p_holm_block` over the pairs on all datasets of the block. In a long block
only the best row is compared. The scores chose these pairs out of all pairs, so they are adjusted
for the number of all pairs, as if the others had p = 1.

Sources: Student, The probable error of a mean, Biometrika 6, 1908; McNemar, Note on the sampling
error of the difference between correlated proportions, Psychometrika 12, 1947; Holm, A simple
sequentially rejective multiple test procedure, 1979.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from so_clip.errors import InputError
from so_clip.report.averages import AVERAGE, few_shot_runs, same_zero_shot
from so_clip.report.exact_tests import holm, paired_t, sign_test
from so_clip.report.measures import MEASURES
from so_clip.report.progress import watched
from so_clip.report.read import Runs
from so_clip.report.tables import ZERO_SHOT_TITLE, table_runs
from so_clip.report.wording import SENTENCE_WORDS, Wording, wording_of
from so_clip.results.run_files import PREDICTIONS_FILE, columns_if_whole, read_columns

SEEDS = "seeds"
# In a longer block only the best row is compared with the others, to keep the table readable.
MAX_ROWS = 12
# Columns of predictions.csv, before and after adaptation.
_BEFORE, _AFTER = "zero_shot_prediction", "prediction"
# Further reasons against comparisons are only counted.
_MAX_REMARKS = 5
_COLUMNS = (
    "backbone shots dataset first second test seeds difference_points wins losses p p_holm "
    "p_holm_block"
)

Correct = npt.NDArray[np.bool_]
# By folder and column; None if the file cannot be read.
_Answers = dict[tuple[str, str], tuple[str, Correct] | None]


@dataclass(frozen=True)
class _Result:
    """The accuracy of one run, and the file column with its predictions."""

    accuracy_percent: float
    folder: str
    column: str = _AFTER


# Results by table row, dataset and seed.
_Block = dict[str, dict[str, dict[int, _Result]]]


def compare(runs: Runs) -> tuple[pd.DataFrame, list[str]]:
    """Compare the methods of each backbone and number of shots, pair by pair.

    A block has runs of one task.

    Returns:
        One line per pair, dataset and test: `backbone`, `shots`, `dataset` ("average": over all
        datasets that both have), `first`, `second`, `test`, `seeds`, `difference_points` (first -
        second), `wins` and `losses` (images or examples), `p`, `p_holm`, and `p_holm_block` (NaN
        for the average). And one remark for each comparison that cannot be made.
    """
    frame = few_shot_runs(table_runs(MEASURES[0], runs.frame))
    rows: list[dict[str, Any]] = []
    remarks: dict[str, None] = {}
    blocks = list(frame[frame["shots"] > 0].groupby(["backbone", "shots"]))
    for (backbone, shots), group in watched(blocks, "significance"):
        block = _block(group)
        found = [row for pair in _pairs(block) for row in _over_seeds(block, *pair)]
        found += _over_items(block, remarks, wording_of(group))
        rows += [{"backbone": backbone, "shots": shots} | row for row in _adjusted(found, block)]
    table = pd.DataFrame(rows, columns=_COLUMNS.split())
    lines = list(remarks)[:_MAX_REMARKS]
    if len(remarks) > _MAX_REMARKS:
        what, _, _ = list(remarks)[-1].partition(":")
        lines.append(f"{what}: {len(remarks) - _MAX_REMARKS} more runs.")
    return table.astype({"wins": "Int64", "losses": "Int64"}), lines


def _block(runs: pd.DataFrame) -> _Block:
    """Return the runs by row, dataset and seed, with zero-shot CLIP as an additional row.

    Its predictions are those of the runs before they adapted, on datasets where the runs agree.
    """
    block: _Block = defaultdict(lambda: defaultdict(dict))
    columns = ["method_title", "variant", "dataset", "seed", "accuracy_percent", "folder"]
    for title, variant, dataset, seed, accuracy, folder in runs[columns].itertuples(
        index=False, name=None
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
    """Return the pairs to compare, sorted by name."""
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
    """Yield a row for each dataset on which both share seeds, and one for the average."""
    by_dataset = {
        dataset: {
            seed: block[first][dataset][seed].accuracy_percent
            - block[second][dataset][seed].accuracy_percent
            for seed in _shared_seeds(block, first, second, dataset)
        }
        for dataset in block[first]
        if dataset in block[second]
    }
    in_all = set.intersection(*map(set, by_dataset.values())) if len(by_dataset) > 1 else set()
    if in_all:
        by_dataset[AVERAGE] = {
            seed: math.fsum(by_seed[seed] for by_seed in by_dataset.values()) / len(by_dataset)
            for seed in sorted(in_all)
        }
    for dataset, by_seed in by_dataset.items():
        differences = list(by_seed.values())
        if differences:
            yield {
                "dataset": dataset,
                "first": first,
                "second": second,
                "test": SEEDS,
                "seeds": len(differences),
                "difference_points": math.fsum(differences) / len(differences),
                "p": paired_t(differences),
            }


def _shared_seeds(block: _Block, first: str, second: str, dataset: str) -> list[int]:
    return sorted(set(block[first][dataset]) & set(block[second][dataset]))


def _over_items(
    block: _Block, remarks: dict[str, None], words: Wording
) -> Iterator[dict[str, Any]]:
    """Yield a row for each pair and dataset; add a remark for each that cannot be compared.

    Datasets come one after the other, so memory holds the predictions of one dataset only.
    """
    pairs = _pairs(block)
    for dataset in dict.fromkeys(name for datasets in block.values() for name in datasets):
        answers: _Answers = {}
        for first, second in pairs:
            results = [
                (block[first][dataset][seed], block[second][dataset][seed])
                for seed in _shared_seeds(block, first, second, dataset)
            ]
            balance = _balance(results, answers, remarks, words)
            if balance is None:
                continue
            wins, losses = int(np.sum(balance > 0)), int(np.sum(balance < 0))
            yield {
                "dataset": dataset,
                "first": first,
                "second": second,
                "test": words.items,
                "seeds": len(results),
                "difference_points": 100.0 * float(np.mean(balance)) / len(results),
                "wins": wins,
                "losses": losses,
                "p": sign_test(wins, losses),
            }


def _balance(
    pairs: Sequence[tuple[_Result, _Result]],
    answers: _Answers,
    remarks: dict[str, None],
    words: Wording,
) -> npt.NDArray[np.int16] | None:
    """Return for each test item the correct runs of the first method minus those of the second.

    None if the predictions cannot be compared; then `remarks` gets the reason.
    """
    results = [result for pair in pairs for result in pair]
    read = [_read_answers(result, answers, remarks, words) for result in results]
    known = [answer for answer in read if answer is not None]
    if not known or len(known) < len(read):
        return None
    balance = np.zeros(len(known[0][1]), dtype=np.int16)
    for at, (items, correct) in enumerate(known):
        if items != known[0][0]:
            remarks[
                f"not compared over {words.items}: {results[0].folder} and {results[at].folder} "
                f"were not tested on the same {words.items} in the same order."
            ] = None
            return None
        balance += correct if at % 2 == 0 else -correct.astype(np.int16)
    return balance


def _read_answers(
    result: _Result, answers: _Answers, remarks: dict[str, None], words: Wording
) -> tuple[str, Correct] | None:
    """Return a hash of the test items in their order, and which predictions are correct.

    Sentences have row numbers. These are the same in every file, so their labels are hashed too.
    """
    if (result.folder, result.column) not in answers:
        file = Path(result.folder) / PREDICTIONS_FILE
        answers |= {(result.folder, column): None for column in (_BEFORE, _AFTER)}
        try:
            # Runs without a text tower have no zero-shot predictions.
            named = (words.column,)
            given = columns_if_whole(file, whole=("label", _BEFORE, _AFTER), texts=named)
            given = given or read_columns(file, whole=("label", _AFTER), texts=named)
        except InputError as error:
            remarks[f"not compared over {words.items}: {error}"] = None
        else:
            names = given[words.column]
            if words is SENTENCE_WORDS:
                names = [*names, *map(str, given["label"].tolist())]
            items = hashlib.sha256("\n".join(names).encode()).hexdigest()
            for column in given.keys() - {"label", words.column}:
                answers[result.folder, column] = items, given[column] == given["label"]
    return answers[result.folder, result.column]


def _adjusted(rows: Sequence[dict[str, Any]], block: _Block) -> list[dict[str, Any]]:
    """Add `p_holm`, over the pairs of a test and dataset, and `p_holm_block`, over all datasets."""
    families: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        families["p_holm", row["test"], row["dataset"]].append(at)
        if row["dataset"] != AVERAGE:  # the average follows from the datasets
            families["p_holm_block", row["test"]].append(at)
    pairs = _number_of_pairs(block)
    adjusted = [row | {"p_holm_block": math.nan} for row in rows]
    for (column, _, *dataset), family in families.items():
        names = dataset or [name for name in pairs if name != AVERAGE]
        others = sum(pairs[name] for name in names) - len(family) if len(block) > MAX_ROWS else 0
        known = [rows[at]["p"] for at in family]
        for at, p in zip(family, holm([*known, *[1.0] * others]), strict=False):
            adjusted[at][column] = p
    return adjusted


def _number_of_pairs(block: _Block) -> dict[str, int]:
    """Return the number of pairs of rows on each dataset, and on the average."""
    names = [name for datasets in block.values() for name, seeds in datasets.items() if seeds]
    pairs = {name: math.comb(names.count(name), 2) for name in dict.fromkeys(names)}
    return pairs | {AVERAGE: math.comb(len(block), 2)}
