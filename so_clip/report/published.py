"""Published figures beside this project's own, marked as what they are.

published.csv holds them: a row a figure, with its source, and its uncertainty in points where that
is known (of figures read off a plot). "SO" and "CLIP-LoRA" of different sources are different rows,
and what the SO paper calls LoRA is nobody else's: it is two points below CLIP-LoRA's own figures.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas as pd

from so_clip.report.read import Runs
from so_clip.report.tables import AVERAGE, DATASETS, Block, Cell, Row, Table

FILE = Path(__file__).parent / "published.csv"
NOTE = (
    "Published rows are other people's figures, of their own runs: images drawn, prompts, "
    "precision and steps may differ."
)


FILE_NOTE = (
    "Published figures are of OpenAI's weights, and a local file's need not be these: they stand "
    "beside runs of backbone.pretrained=openai without backbone.checkpoint."
)


def add_published(tables: Sequence[Table], runs: Runs) -> list[Table]:
    """Return the tables; those of accuracy with published rows where backbone and shots match.

    Published figures are of OpenAI's weights; a backbone that only ran with others gets none. Of
    those of a local file nobody knows; a note says how to have the rows.
    """
    with_openai, of_a_file = set(), set()
    for backbone, settings in zip(runs.frame["backbone"], runs.frame["settings"], strict=True):
        given = settings.get("backbone")
        if isinstance(given, dict) and given.get("checkpoint"):
            of_a_file.add(backbone)
        elif isinstance(given, dict) and given.get("pretrained") == "openai":
            with_openai.add(backbone)
    done = []
    for table in tables:
        if table.figure.name == "accuracy":
            fuller = _with_published(table)
            if table.backbone in with_openai:
                table = fuller
            elif table.backbone in of_a_file and fuller is not table:
                table = replace(table, notes=(*table.notes, FILE_NOTE))
        done.append(table)
    return done


@cache
def figures() -> pd.DataFrame:
    """Return published.csv."""
    return pd.read_csv(FILE)


def _with_published(table: Table) -> Table:
    known = figures()
    known = known[known["backbone"].map(_plain_name) == _plain_name(table.backbone)]
    blocks = []
    for block in table.blocks:
        rows = [
            row
            for (source, method), group in known[known["shots"] == block.shots].groupby(
                ["source", "method"], sort=False
            )
            if (row := _row(table, str(method), str(source), group)).cells
        ]
        rows.sort(key=lambda row: (row.title.lower(), row.source))
        blocks.append(Block(block.shots, [*block.rows, *rows]))
    if all(len(new.rows) == len(old.rows) for new, old in zip(blocks, table.blocks, strict=True)):
        return table
    return replace(table, blocks=blocks, notes=(*table.notes, NOTE))


def _row(table: Table, method: str, source: str, figures: pd.DataFrame) -> Row:
    """Return a row of what is published for the table's datasets.

    The published average is that of eleven datasets. A table of others averages what it shows.
    """
    cells = {
        each["dataset"]: Cell(
            each["accuracy_percent"], runs=0, uncertainty=each["uncertainty_points"]
        )
        for each in figures.to_dict("records")
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
    """Return what ViT-B/16, ViT-B-16 and ViT-B-16-quickgelu have in common."""
    return backbone.lower().replace("/", "-").removesuffix("-quickgelu")
