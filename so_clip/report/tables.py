"""Tables as in the papers: one column per dataset, one row per method, one block per shots."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from so_clip.data.base_to_new import BASE_TO_NEW
from so_clip.report.averages import (
    AVERAGE,
    averages,
    even_shots,
    intervals,
    on_all_classes,
    same_zero_shot,
    statistics,
)
from so_clip.report.measures import (
    COSTS,
    DATASETS,
    EVALUATION,
    MEASURES,
    SECONDS,
    STEPS,
    TASKS,
    Column,
    Measure,
)
from so_clip.report.read import ROW, RUN, Runs, transfers
from so_clip.report.sentences import cut_notes, item_intervals, item_notes
from so_clip.report.table import Block, Cell, Row, Table
from so_clip.report.versions import contents_notes, seconds_notes, skipped_notes, version_notes
from so_clip.report.wording import SENTENCE_WORDS, wording_of

FLOPS_NOTE = (
    "FLOPs are forecast, not measured: they count the matrix products, convolutions and attention "
    "of the training steps, for the classes and images of the dataset's card."
)
UNEVEN_NOTE = "Rows with uneven shots (imbalance) are shown, but never marked as best."
ZERO_SHOT, ZERO_SHOT_TITLE = "zero_shot", "Zero-shot CLIP"


def make_tables(runs: Runs) -> list[Table]:
    """Return a table for each measure and backbone that has values."""
    return [
        _table(measure, str(backbone), group)
        for measure in MEASURES
        for backbone, group in _measured(measure, runs).groupby("backbone", sort=True)
    ]


def _measured(measure: Measure, runs: Runs) -> pd.DataFrame:
    """Return the runs in a measure's tables; some kinds of runs have a table of their own."""
    others = {EVALUATION: runs.evaluations, TASKS: runs.tasks}
    if measure.name not in others:
        return table_runs(measure, runs.frame)
    found = others[measure.name]
    return found if len(found) else runs.frame.iloc[:0]


def table_runs(measure: Measure, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the runs in a measure's tables, without repeats."""
    runs = transfers(frame) if measure.name == "transfer" else frame.drop_duplicates(RUN)
    if measure.name == "accuracy":
        runs = on_all_classes(runs)
    if "train_flops" in runs:
        runs = runs.assign(train_tflops=pd.to_numeric(runs["train_flops"]) / 1e12)
    if measure.column not in runs:
        return runs.iloc[:0]
    runs = runs[runs[measure.column].notna()]
    if measure.name in _BASE_TO_NEW_MEASURES:  # all rows have this protocol, so no row names it
        runs = runs.assign(variant=runs["variant"].map(_without_protocol))
    return runs


def _table(measure: Measure, backbone: str, runs: pd.DataFrame) -> Table:
    different_timing = seconds_notes(runs) if measure.costs or measure.column == SECONDS else []
    words = wording_of(runs)
    notes = [
        *version_notes(runs),
        *contents_notes(runs),
        *skipped_notes(runs),
        *cut_notes(runs),
        *different_timing,
    ]
    has_flops = "train_tflops" in runs and runs["train_tflops"].notna().any()
    if has_flops and (measure.costs or measure.column == "train_tflops"):
        notes.append(FLOPS_NOTE)
    runs, zero_shot_note = _with_zero_shot(measure, runs)
    notes = [*zero_shot_note, *notes]
    uneven = set(runs.loc[~even_shots(runs), ROW].itertuples(index=False, name=None))
    if uneven:
        notes.append(UNEVEN_NOTE)
    tidy = statistics(runs, measure.column)
    columns, cells = _columns_and_cells(measure, runs, tidy)
    if words is SENTENCE_WORDS and measure.name == "accuracy":
        for (key, dataset), interval in item_intervals(runs).items():
            cells[key][dataset] = replace(cells[key][dataset], interval=interval)
    methods = runs.groupby(ROW)["method"].first()
    blocks: dict[int, list[Row]] = {}
    for key, row_cells in cells.items():
        _, shots, title, variant = key
        row = Row(title, variant, row_cells, str(methods[key]), even=key not in uneven)
        blocks.setdefault(shots, []).append(row)
    counts = tidy.loc[tidy["shots"] > 0, "runs"]
    usual_runs = int((counts if len(counts) else tidy["runs"]).mode().max())
    ranked = [
        column
        for column in columns
        if column.key != STEPS
        if not different_timing or SECONDS not in (measure.column, column.key)
    ]
    marked = [
        Block(shots, mark_best(sorted(rows, key=_row_order), ranked, measure), words)
        for shots, rows in sorted(blocks.items())
    ]
    if words is SENTENCE_WORDS and measure.name == "accuracy":
        notes = [*item_notes(runs), *notes]
    return Table(measure, backbone, columns, marked, usual_runs, tuple(notes), words)


def _columns_and_cells(
    measure: Measure, runs: pd.DataFrame, tidy: pd.DataFrame
) -> tuple[list[Column], dict[tuple[Any, ...], dict[str, Cell]]]:
    """Return a table's columns, and the cells of each row by the key of their column."""
    datasets = sorted(runs["dataset"].unique(), key=_dataset_order)
    columns = [Column(name, DATASETS.get(name, name), measure.decimals) for name in datasets]
    cells: dict[tuple[Any, ...], dict[str, Cell]] = {}
    widths = intervals(runs, measure.interval) if measure.interval else None
    for values in tidy.to_dict("records"):
        key, dataset = tuple(values[name] for name in ROW), values["dataset"]
        std = widths[key][dataset] if widths else values["std"]
        cells.setdefault(key, {})[dataset] = Cell(values["mean"], std, values["runs"])
    if len(datasets) > 1:
        columns.append(Column(AVERAGE, AVERAGE, measure.decimals))
        for key, (mean, std, seeds) in averages(runs, measure.column, len(datasets)).items():
            cells[key][AVERAGE] = Cell(mean, widths[key][AVERAGE] if widths else std, seeds)
    is_sentences = wording_of(runs) is SENTENCE_WORDS
    for cost in COSTS if measure.costs else ():
        if cost.key == STEPS and not is_sentences:
            continue
        if cost.key in runs and runs[cost.key].notna().any():
            columns.append(cost)
            for key, (mean, _, seeds) in averages(runs, cost.key, len(datasets)).items():
                cells[key][cost.key] = Cell(mean, runs=seeds)
    return columns, cells


_BASE_TO_NEW_MEASURES = ("base_accuracy", "new_accuracy", "harmonic_mean")


def _without_protocol(variant: str) -> str:
    parts = [part for part in variant.split(", ") if part != f"protocol={BASE_TO_NEW}"]
    return ", ".join(parts)


def _with_zero_shot(measure: Measure, runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Add a row for zero-shot CLIP, from what runs measured before they adapted, and a note.

    No row is added if zero-shot CLIP has runs of its own, and no value where runs disagree. Sampled
    tasks are other ones for each number of shots and each seed.
    """
    column = f"zero_shot_{measure.column}"
    if column not in runs or (runs["method"] == ZERO_SHOT).any():
        return runs, []
    row = {"backbone": runs["backbone"].iloc[0], "method": ZERO_SHOT}
    row |= {"method_title": ZERO_SHOT_TITLE, "variant": ""}
    groups: Any = [((0, 0), runs)]
    if measure.interval:
        groups = runs.groupby(["shots", "seed"])
    added = []
    for (shots, seed), group in groups:
        row |= {"shots": shots, "seed": seed}
        widths = same_zero_shot(group, f"zero_shot_{measure.interval}") if measure.interval else {}
        added += [
            row | {"dataset": dataset, measure.column: value, measure.interval: widths.get(dataset)}
            for dataset, value in same_zero_shot(group, column).items()
        ]
    if not added:
        return runs, []
    extended = pd.concat([runs, pd.DataFrame(added)], ignore_index=True)
    return extended, ["Zero-shot values were measured by the runs before they adapted."]


def _dataset_order(dataset: str) -> tuple[int, str]:
    names = list(DATASETS)
    return (names.index(dataset) if dataset in names else len(names)), dataset


def _row_order(row: Row) -> tuple[Any, ...]:
    """Sort by title, then by variant, with the numbers in a variant compared as numbers."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)", row.variant)
    numbers = [(0, float(part), "") if at % 2 else (1, 0.0, part) for at, part in enumerate(parts)]
    return row.title.lower(), row.title, numbers


def mark_best(rows: Sequence[Row], columns: Sequence[Column], measure: Measure) -> list[Row]:
    """Mark the best cell of each column, or all of them if several show the same number.

    Published rows and rows with uneven shots are never marked. A column in which all cells show the
    same number has no mark.
    """
    for column in columns:
        high = measure.best == "max" and column not in COSTS
        shown = {
            index: round(row.cells[column.key].mean, column.decimals)
            for index, row in enumerate(rows)
            if row.even and not row.source and column.key in row.cells
        }
        if len(set(shown.values())) < 2:
            continue
        best = (max if high else min)(shown.values())
        rows = [
            replace(row, cells={**row.cells, column.key: replace(row.cells[column.key], best=True)})
            if shown.get(index) == best
            else row
            for index, row in enumerate(rows)
        ]
    return list(rows)
