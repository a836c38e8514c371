"""A table: cells in rows, rows in blocks of one number of shots. `formats` turns it into text."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from so_clip.report.averages import AVERAGE
from so_clip.report.measures import COSTS, Column, Measure
from so_clip.report.wording import IMAGE_WORDS, Wording


@dataclass(frozen=True)
class Cell:
    """Mean and sample standard deviation over `runs` runs; `best` in its block.

    `std` is NaN for a single run. In a table of sampled tasks it is the half width of the 95 %
    interval over tasks. A published value has 0 `runs`; `uncertainty` is its known error
    (NaN: unknown). `interval` is the 95 % interval of the mean over test items, for sentences.
    """

    mean: float
    std: float = math.nan
    runs: int = 1
    best: bool = False
    uncertainty: float = math.nan
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Row:
    """One method with one variant of its settings, at one number of shots.

    `source` names the publication of a published row and is empty otherwise. `even` is False if
    classes had different numbers of training images; such rows are never marked as best.
    """

    title: str
    variant: str
    cells: Mapping[str, Cell]
    method: str = ""
    source: str = ""
    even: bool = True

    @property
    def label(self) -> str:
        """The row's name, with its source if it is published."""
        return f"{self.name} [{self.reference}]" if self.source else self.name

    @property
    def name(self) -> str:
        """The row's name without its source."""
        return f"{self.title} ({self.variant})" if self.variant else self.title

    @property
    def reference(self) -> str:
        """The source of a published row and its uncertainty."""
        if any(cell.interval for cell in self.cells.values()):
            return f"published: {self.source}"
        errors = [cell.uncertainty for cell in self.cells.values()]
        errors = sorted({error for error in errors if not math.isnan(error)})
        if not errors:
            return f"published: {self.source}, uncertainty not given"
        ends = dict.fromkeys((errors[0], errors[-1]))
        return f"published: {self.source}, ±{' to '.join(f'{error:g}' for error in ends)}"


@dataclass(frozen=True)
class Block:
    """The rows with one number of shots; 0 for zero-shot rows."""

    shots: int
    rows: Sequence[Row]
    words: Wording = IMAGE_WORDS

    @property
    def title(self) -> str:
        """The block's heading."""
        return self.words.in_shots(self.shots) if self.shots else "zero-shot"


@dataclass(frozen=True)
class Table:
    """One measure for one backbone.

    Attributes:
        measure: the number in the cells.
        backbone: the backbone of all runs.
        columns: datasets in the papers' order, their average if there are several, costs.
        blocks: rows by number of shots.
        usual_runs: the most common number of seeds; a cell with another number shows it.
        notes: sentences for the reader.
        words: of the task of its runs.
    """

    measure: Measure
    backbone: str
    columns: Sequence[Column]
    blocks: Sequence[Block]
    usual_runs: int
    notes: Sequence[str] = field(default_factory=tuple)
    words: Wording = IMAGE_WORDS

    @property
    def name(self) -> str:
        """A name for files and anchors, unique in a report."""
        return f"{self.measure.name}_{slug(self.backbone)}"

    @property
    def caption(self) -> str:
        """One line that says what the cells hold."""
        if self.measure.interval:
            return f"{self.measure.caption}, {self.backbone}: mean ± 95 % interval over tasks"
        spread = "mean" if self.usual_runs < 2 else "mean ± standard deviation"
        seeds = "1 seed" if self.usual_runs == 1 else f"{self.usual_runs} seeds"
        caption = f"{self.measure.caption}, {self.backbone}: {spread} over {seeds}"
        if self.has_intervals:
            caption += " [95 % interval over test examples]"
        return caption

    @property
    def has_intervals(self) -> bool:
        """Whether a cell has the interval of its mean over test items."""
        rows = (row for block in self.blocks for row in block.rows)
        return any(cell.interval for row in rows for cell in row.cells.values())

    @property
    def datasets(self) -> list[str]:
        """The datasets of the columns, by their names on the command line."""
        others = {AVERAGE, *(column.key for column in COSTS)}
        return [column.key for column in self.columns if column.key not in others]


def slug(text: str) -> str:
    """Return the text in a form that is safe in file names."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "none"
