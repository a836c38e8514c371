"""Published scores beside the project's own, marked as published.

published.csv has one line per score, with its source, and its uncertainty in percentage points if
that is known (for scores read off a plot). Rows named "SO" or "CLIP-LoRA" of different sources stay
separate. The method that the SO paper calls LoRA is a separate row too: it scores two points below
CLIP-LoRA.

published_sentences.csv has the runs of BERT on RTE that were released with SO, with their steps.
They are shown beside every model's runs on that dataset, and name the model if it is another one.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from so_clip.report.averages import AVERAGE
from so_clip.report.measures import DATASETS, STEPS
from so_clip.report.read import Runs
from so_clip.report.table import Cell, Row, Table
from so_clip.report.wording import SENTENCE_WORDS
from so_clip.results.interval import wilson

FILE = Path(__file__).parent / "published.csv"
SENTENCES_FILE = FILE.with_name("published_sentences.csv")
# Published models, and the names of their choices (model=NAME).
MODELS = {"bert-base-uncased": "bert_base"}
NOTE = (
    "Published rows are scores from other people's runs: drawn images, prompts, precision and "
    "steps may differ."
)
SENTENCES_NOTE = (
    "Published rows are other people's runs of one seed: their draws, tokens, rates and steps may "
    "differ, and they are in no average. Their intervals are computed here from the accuracy and "
    "the number of test examples. One of {items} examples is {points:.2f} points, and the "
    "published rows on {dataset} differ by {span:.1f} points at most: {examples} examples."
)
LOCAL_WEIGHTS_NOTE = (
    "Published scores use OpenAI's weights, and a local file may hold other weights: they are "
    "shown beside runs with backbone.pretrained=openai and without backbone.checkpoint."
)


def add_published(tables: Sequence[Table], runs: Runs) -> list[Table]:
    """Add published rows to accuracy tables whose backbone and shots match.

    Published scores use OpenAI's weights, so a backbone gets them only if it ran with these. For
    weights from a local file a note says how to get the rows.
    """
    with_openai, from_a_file = set(), set()
    for backbone, settings in zip(runs.frame["backbone"], runs.frame["settings"], strict=True):
        given = settings.get("backbone")
        if isinstance(given, dict) and given.get("checkpoint"):
            from_a_file.add(backbone)
        elif isinstance(given, dict) and given.get("pretrained") == "openai":
            with_openai.add(backbone)
    extended = []
    for table in tables:
        if table.measure.name == "accuracy" and table.words is SENTENCE_WORDS:
            table = _with_published_sentences(table)
        elif table.measure.name == "accuracy":
            fuller = _with_published(table)
            if table.backbone in with_openai:
                table = fuller
            elif table.backbone in from_a_file and fuller is not table:
                table = replace(table, notes=(*table.notes, LOCAL_WEIGHTS_NOTE))
        extended.append(table)
    return extended


@cache
def published_scores() -> pd.DataFrame:
    """Return published.csv."""
    return pd.read_csv(FILE)


def _with_published(table: Table) -> Table:
    """Return the table with all published rows that match, or the same object if there are none."""
    scores = published_scores()
    scores = scores[scores["backbone"].map(_plain_name) == _plain_name(table.backbone)]
    blocks, added = [], 0
    for block in table.blocks:
        by_row = scores[scores["shots"] == block.shots].groupby(["source", "method"], sort=False)
        rows = [_row(table, str(method), str(source), group) for (source, method), group in by_row]
        rows = sorted(
            (row for row in rows if row.cells), key=lambda row: (row.title.lower(), row.source)
        )
        added += len(rows)
        blocks.append(replace(block, rows=[*block.rows, *rows]))
    return replace(table, blocks=blocks, notes=(*table.notes, NOTE)) if added else table


@cache
def published_sentences() -> pd.DataFrame:
    """Return published_sentences.csv."""
    return pd.read_csv(SENTENCES_FILE)


def _with_published_sentences(table: Table) -> Table:
    """Return a table of sentences with the published rows of its datasets and numbers of examples.

    An accuracy has one decimal in the source, so the number of right examples is the nearest one.
    """
    known = published_sentences()
    known = known[known["dataset"].isin(table.datasets)]
    shown = known[known["shots"].isin([block.shots for block in table.blocks])]
    if shown.empty:
        return table
    blocks = []
    for block in table.blocks:
        scores = shown[shown["shots"] == block.shots].to_dict("records")
        rows = [_sentences_row(score, table.backbone) for score in scores]
        blocks.append(replace(block, rows=[*block.rows, *rows]))
    notes = [_sentences_note(str(name), scores) for name, scores in shown.groupby("dataset")]
    return replace(table, blocks=blocks, notes=(*table.notes, *notes))


def _sentences_row(score: dict[Any, Any], backbone: str) -> Row:
    items, accuracy, model = score["test_examples"], score["accuracy_percent"], score["model"]
    interval = wilson(round(accuracy / 100 * items), items)
    cells = {
        score["dataset"]: Cell(accuracy, runs=0, interval=interval),
        STEPS: Cell(score["steps"], runs=0),
    }
    # The page cuts long sources, so the other model comes first.
    named = model if MODELS.get(model) == backbone else f"other model, {model}"
    return Row(score["method"], score["variant"], cells, source=f"{named}: {score['source']}")


def _sentences_note(dataset: str, scores: pd.DataFrame) -> str:
    items = int(scores["test_examples"].iloc[0])
    span = float(scores["accuracy_percent"].max() - scores["accuracy_percent"].min())
    return SENTENCES_NOTE.format(
        items=items,
        points=100 / items,
        dataset=dataset,
        span=span,
        examples=round(span / 100 * items),
    )


def _row(table: Table, method: str, source: str, scores: pd.DataFrame) -> Row:
    """Return the published row for the table's datasets.

    A published average covers the papers' eleven datasets. A table with other datasets shows the
    average of its own columns instead.
    """
    columns = scores[["dataset", "accuracy_percent", "uncertainty_points"]]
    cells = {
        str(dataset): Cell(accuracy, runs=0, uncertainty=uncertainty)
        for dataset, accuracy, uncertainty in columns.itertuples(index=False, name=None)
    }
    average = cells.pop(AVERAGE, None)
    shown = {name: cells[name] for name in table.datasets if name in cells}
    if set(table.datasets) != set(DATASETS) or average is None:
        whole = len(shown) == len(table.datasets) > 1
        means = [cell.mean for cell in shown.values()]
        worst = max((cell.uncertainty for cell in shown.values()), default=math.nan)
        average = Cell(math.fsum(means) / len(means), runs=0, uncertainty=worst) if whole else None
    if average is not None:
        shown[AVERAGE] = average
    return Row(method, "", shown, source=source)


def _plain_name(backbone: str) -> str:
    """Map ViT-B/16, ViT-B-16 and ViT-B-16-quickgelu to one name."""
    return backbone.lower().replace("/", "-").removesuffix("-quickgelu")
