"""Published scores beside the project's own, marked as published.

published.csv has one line per score, with its source, and its uncertainty in percentage points if
that is known (for scores read off a plot). Rows named "SO" or "CLIP-LoRA" of different sources stay
separate. The method that the SO paper calls LoRA is a separate row too: it scores two points below
CLIP-LoRA.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas as pd

from so_clip.report.averages import AVERAGE
from so_clip.report.read import Runs
from so_clip.report.tables import DATASETS, Cell, Row, Table

FILE = Path(__file__).parent / "published.csv"
NOTE = (
    "Published rows are scores from other people's runs: drawn images, prompts, precision and "
    "steps may differ."
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
        if table.measure.name == "accuracy":
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
