"""Tables as files, in every format that is asked for."""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

import pandas as pd

from so_clip.report.formats import latex
from so_clip.report.formats import text as formats
from so_clip.report.significance import MAX_ROWS
from so_clip.report.tables import Table
from so_clip.system import atomic

SIGNIFICANCE = (
    "Two methods a row; the difference is the first's accuracy less the second's. A p below 0.05 "
    "says that chance hardly makes such a difference, one above it that these runs cannot tell. "
    "Over seeds: Student's paired t of the average over datasets; with three seeds it finds large "
    "and steady differences only. Over test images: the exact sign test on each dataset (of one "
    "seed that is McNemar's), p < 0.05 after Holm over all pairs and datasets of the block. "
    "p (Holm) over seeds is over all pairs of the block. Of a block with more than "
    f"{MAX_ROWS} rows the best is compared with each, and adjusted for all pairs of the block. "
    "Rows of uneven shots are not compared."
)
# One of a figure's tables in each format, beside the tidy CSV of them all.
_WRITERS: dict[str, Callable[[Table], str]] = {
    "md": formats.to_markdown,
    "tex": latex.to_latex,
    "html": formats.to_html,
}


def write_tables(
    tables: Sequence[Table], folder: Path, endings: Sequence[str] = tuple(_WRITERS)
) -> list[str]:
    """Write the tables as CSV and in these formats, a file a figure; return the figures' names."""
    names = []
    for name, of_figure in groupby(tables, key=lambda table: table.figure.name):
        each = list(of_figure)
        atomic.write_text(folder / f"{name}.csv", formats.tidy(each).to_csv(index=False))
        for ending in endings:
            text = "\n".join(map(_WRITERS[ending], each))
            head = latex.HEADER if ending == "tex" else ""
            atomic.write_text(folder / f"{name}.{ending}", head + text)
        names.append(name)
    return names


def write_significance(comparisons: pd.DataFrame, pairs: pd.DataFrame, folder: Path) -> str:
    """Write every comparison as CSV and the pairs for people; return the files' name."""
    name = "significance"
    texts = formats.readable(pairs)
    columns = 4  # backbone, shots and two methods
    atomic.write_text(folder / f"{name}.csv", comparisons.to_csv(index=False))
    for ending, text in (
        ("md", formats.frame_to_markdown(texts, SIGNIFICANCE, columns)),
        ("tex", latex.HEADER + latex.frame_to_latex(texts, SIGNIFICANCE, name, columns)),
        ("html", formats.frame_to_html(texts, SIGNIFICANCE, name)),
    ):
        atomic.write_text(folder / f"{name}.{ending}", text)
    return name
