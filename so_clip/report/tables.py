"""Runs -> the paper's tables: datasets across, methods down, shots as blocks.

A table is made of cells that know their figures; `formats` writes it as text.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from so_clip.data.base_to_new import BASE_TO_NEW
from so_clip.report.averages import (
    averages,
    even_shots,
    on_all_classes,
    same_zero_shot,
    statistics,
)
from so_clip.report.read import ROW, RUN, Runs, transfers
from so_clip.report.versions import seconds_notes, skipped_notes, version_notes

# As the papers order and shorten them; others follow by name.
DATASETS = {
    "imagenet": "ImageNet",
    "sun397": "SUN397",
    "fgvc": "Aircraft",
    "eurosat": "EuroSAT",
    "stanford_cars": "Cars",
    "food101": "Food101",
    "oxford_pets": "Pets",
    "oxford_flowers": "Flowers",
    "caltech101": "Caltech101",
    "dtd": "DTD",
    "ucf101": "UCF101",
}
AVERAGE = "average"
SECONDS = "train_seconds"
FLOPS_NOTE = (
    "FLOPs are forecast, not measured: matrix products, convolutions and attention of the training "
    "steps that were taken, for the classes and images of the dataset's card."
)
UNEVEN_NOTE = "Rows of uneven shots (imbalance) are beside the others and compete with none."
ZERO_SHOT, ZERO_SHOT_TITLE = "zero_shot", "Zero-shot CLIP"


@dataclass(frozen=True)
class Column:
    """A column of figures: a dataset, the average of all, or what it cost."""

    key: str
    title: str
    decimals: int = 2


# What stands beside accuracies, where runs have recorded it.
COSTS = (
    Column("peak_memory_mib", "memory (MiB)", 1),
    Column(SECONDS, "training (s)", 1),
    Column("train_tflops", "training (TFLOP)"),
)


@dataclass(frozen=True)
class Figure:
    """What a table is of: a column of the runs, its name for people, and which way is better."""

    name: str
    column: str
    caption: str
    best: str = "max"
    decimals: int = 2
    costs: bool = False


FIGURES = (
    Figure("accuracy", "accuracy_percent", "Test accuracy in percent", costs=True),
    Figure(
        "base_accuracy", "base_accuracy_percent", "Accuracy on base classes in percent", costs=True
    ),
    Figure("new_accuracy", "new_accuracy_percent", "Accuracy on new classes in percent"),
    Figure(
        "harmonic_mean", "harmonic_mean_percent", "Harmonic mean of base and new accuracy, percent"
    ),
    Figure("transfer", "accuracy_percent", "Test accuracy on other datasets in percent"),
    Figure(
        "calibration",
        "expected_calibration_error_percent",
        "Expected calibration error in percent (15 bins)",
        best="min",
    ),
    Figure("memory", "peak_memory_mib", "Peak memory in MiB", best="min", decimals=1),
    Figure("seconds", SECONDS, "Training time in seconds", best="min", decimals=1),
    Figure("flops", "train_tflops", "Training in TFLOP", best="min"),
)


@dataclass(frozen=True)
class Cell:
    """Mean and sample standard deviation (NaN for one) over `runs`; `best` of its block.

    A published figure has no `runs`; `uncertainty` is what is known of its error (NaN: nothing).
    """

    mean: float
    std: float = math.nan
    runs: int = 1
    best: bool = False
    uncertainty: float = math.nan


@dataclass(frozen=True)
class Row:
    """One method, as it was set, at one number of shots; of a published one `source` says whose.

    `even`: each class had that many training images, so that it competes with the others.
    """

    title: str
    variant: str
    cells: Mapping[str, Cell]
    method: str = ""
    source: str = ""
    even: bool = True

    @property
    def label(self) -> str:
        """The row's name for people."""
        return f"{self.name} [{self.reference}]" if self.source else self.name

    @property
    def name(self) -> str:
        """The row's name without its source."""
        return f"{self.title} ({self.variant})" if self.variant else self.title

    @property
    def reference(self) -> str:
        """Of a published row: whose figures these are, and how sure."""
        known = [each.uncertainty for each in self.cells.values()]
        known = sorted({each for each in known if not math.isnan(each)})
        ends = (
            " to ".join(f"{each:g}" for each in dict.fromkeys((known[0], known[-1])))
            if known
            else ""
        )
        return f"published: {self.source}, {f'±{ends}' if known else 'uncertainty not given'}"


@dataclass(frozen=True)
class Block:
    """The rows at one number of shots; 0 for those that saw none."""

    shots: int
    rows: Sequence[Row]

    @property
    def title(self) -> str:
        """The block's name for people."""
        return {0: "zero-shot", 1: "1 shot"}.get(self.shots, f"{self.shots} shots")


@dataclass(frozen=True)
class Table:
    """One figure for one backbone.

    Attributes:
        figure: what it is of.
        backbone: of all its runs.
        columns: datasets in the paper's order, their average where there are several, costs.
        blocks: by shots.
        usual_runs: how many seeds most cells have; where another number is, the cell says so.
        notes: what a reader should know, a sentence each.
        commands: for a shell; they do the runs that the table lacks.
    """

    figure: Figure
    backbone: str
    columns: Sequence[Column]
    blocks: Sequence[Block]
    usual_runs: int
    notes: Sequence[str] = field(default_factory=tuple)
    commands: Sequence[str] = field(default_factory=tuple)

    @property
    def name(self) -> str:
        """A name for files and anchors, unique in a report."""
        return f"{self.figure.name}_{slug(self.backbone)}"

    @property
    def caption(self) -> str:
        """One line that says what the figures are."""
        spread = "mean" if self.usual_runs < 2 else "mean ± standard deviation"
        seeds = "1 seed" if self.usual_runs == 1 else f"{self.usual_runs} seeds"
        return f"{self.figure.caption}, {self.backbone}: {spread} over {seeds}"

    @property
    def datasets(self) -> list[str]:
        """The datasets across, by their names on the command line."""
        costs = {column.key for column in COSTS}
        return [each.key for each in self.columns if each.key not in costs | {AVERAGE}]


def slug(text: str) -> str:
    """Return text as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "none"


def make_tables(runs: Runs) -> list[Table]:
    """Return all tables that the runs have figures for, by figure and backbone."""
    return [
        _table(figure, str(backbone), group)
        for figure in FIGURES
        for backbone, group in table_runs(figure, runs.frame).groupby("backbone", sort=True)
    ]


def table_runs(figure: Figure, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that a figure's tables show, each once."""
    runs = transfers(frame) if figure.name == "transfer" else frame.drop_duplicates(RUN)
    if figure.name == "accuracy":
        runs = on_all_classes(runs)
    if "train_flops" in runs:
        runs = runs.assign(train_tflops=pd.to_numeric(runs["train_flops"]) / 1e12)
    if figure.column not in runs:
        return runs.iloc[:0]
    runs = runs[runs[figure.column].notna()]
    if figure.name in _OF_BASE_TO_NEW:  # all are, so it need not be said
        runs = runs.assign(variant=runs["variant"].map(_without_protocol))
    return runs


def _table(figure: Figure, backbone: str, runs: pd.DataFrame) -> Table:
    unlike = seconds_notes(runs) if figure.costs or figure.column == SECONDS else []
    notes = [*version_notes(runs), *skipped_notes(runs), *unlike]
    if "train_tflops" in runs and (figure.costs or figure.column == "train_tflops"):
        notes.append(FLOPS_NOTE)
    runs, note = _with_zero_shot(figure, runs)
    notes = [*note, *notes]
    uneven = set(runs.loc[~even_shots(runs), ROW].itertuples(index=False, name=None))
    if uneven:
        notes.append(UNEVEN_NOTE)
    datasets = sorted(runs["dataset"].unique(), key=_place)
    columns = [Column(name, DATASETS.get(name, name), figure.decimals) for name in datasets]
    if len(datasets) > 1:
        columns.append(Column(AVERAGE, AVERAGE, figure.decimals))
    tidy = statistics(runs, figure.column)
    cells = _cells(tidy)
    if len(datasets) > 1:
        for key, figures in averages(runs, figure.column, len(datasets)).items():
            cells[key][AVERAGE] = Cell(*figures)
    for cost in COSTS if figure.costs else ():
        if cost.key in runs and runs[cost.key].notna().any():
            columns.append(cost)
            for key, (mean, _, seeds) in averages(runs, cost.key, len(datasets)).items():
                cells[key][cost.key] = Cell(mean, runs=seeds)
    methods = runs.groupby(ROW)["method"].first()
    blocks: dict[int, list[Row]] = {}
    for key, of_row in cells.items():
        _, shots, title, variant = key
        row = Row(title, variant, of_row, str(methods[key]), even=key not in uneven)
        blocks.setdefault(shots, []).append(row)
    counts = tidy.loc[tidy["shots"] > 0, "runs"]
    usual = int((counts if len(counts) else tidy["runs"]).mode().max())
    ranked = [each for each in columns if not unlike or SECONDS not in (figure.column, each.key)]
    done = [
        Block(shots, mark_best(sorted(rows, key=_row_place), ranked, figure))
        for shots, rows in sorted(blocks.items())
    ]
    return Table(figure, backbone, columns, done, usual, tuple(notes))


_OF_BASE_TO_NEW = ("base_accuracy", "new_accuracy", "harmonic_mean")


def _without_protocol(variant: str) -> str:
    parts = [each for each in variant.split(", ") if each != f"protocol={BASE_TO_NEW}"]
    return ", ".join(parts)


def _with_zero_shot(figure: Figure, runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Add a row of zero-shot CLIP, as the runs measured it before they adapted, if there is none.

    Only of datasets where all runs measured the same, and say so in a note.
    """
    column = f"zero_shot_{figure.column}"
    if column not in runs or (runs["method"] == ZERO_SHOT).any():
        return runs, []
    of_all = {"backbone": runs["backbone"].iloc[0], "shots": 0, "seed": 0, "method": ZERO_SHOT}
    of_all |= {"method_title": ZERO_SHOT_TITLE, "variant": ""}
    added = [
        of_all | {"dataset": dataset, figure.column: value}
        for dataset, value in same_zero_shot(runs, column).items()
    ]
    if not added:
        return runs, []
    extended = pd.concat([runs, pd.DataFrame(added)], ignore_index=True)
    return extended, ["Zero-shot figures are those that the runs took before they adapted."]


def _place(dataset: str) -> tuple[int, str]:
    names = list(DATASETS)
    return (names.index(dataset) if dataset in names else len(names)), dataset


def _row_place(row: Row) -> tuple[Any, ...]:
    """Sort by title, then by variant with its numbers as numbers."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)", row.variant)
    numbers = [(0, float(part), "") if at % 2 else (1, 0.0, part) for at, part in enumerate(parts)]
    return row.title.lower(), row.title, numbers


def _cells(tidy: pd.DataFrame) -> dict[tuple[Any, ...], dict[str, Cell]]:
    """Return the cells of each table row, by dataset."""
    cells: dict[tuple[Any, ...], dict[str, Cell]] = {}
    for each in tidy.to_dict("records"):
        key = tuple(each[name] for name in ROW)
        cells.setdefault(key, {})[each["dataset"]] = Cell(each["mean"], each["std"], each["runs"])
    return cells


def mark_best(rows: Sequence[Row], columns: Sequence[Column], figure: Figure) -> list[Row]:
    """Mark the best cell of each column, all of them where several read the same.

    Published rows and those of uneven shots do not compete, and nothing is best where there is
    nothing to beat.
    """
    for column in columns:
        high = figure.best == "max" and column not in COSTS
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
