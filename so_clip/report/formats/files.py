"""Write tables to files, in each requested format."""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

import pandas as pd

from so_clip.report.formats import latex
from so_clip.report.formats import text as formats
from so_clip.report.formats.numbers import readable
from so_clip.report.significance import MAX_ROWS
from so_clip.report.tables import Table
from so_clip.system import atomic

SIGNIFICANCE_FILE = "significance"
SIGNIFICANCE = (
    "Each row compares two methods; the difference is the first accuracy minus the second. A p "
    "below 0.05 means that chance is an unlikely reason for the difference; a larger p means "
    "that these runs cannot tell. Over seeds: Student's paired t test of the average over "
    "datasets; with three seeds it finds only large and steady differences. Over test images: "
    "the exact sign test on each dataset (McNemar's test if there is one seed), p < 0.05 after "
    "Holm over all pairs and datasets of the block. p (Holm) over seeds is adjusted over all "
    f"pairs of the block. In a block with more than {MAX_ROWS} rows the best row is compared with "
    "every other row, and p is adjusted for all pairs of the block. Rows with uneven shots are "
    "not compared."
)
# The formats beside CSV.
_WRITERS: dict[str, Callable[[Table], str]] = {
    "md": formats.to_markdown,
    "tex": latex.to_latex,
    "html": formats.to_html,
}


def write_tables(
    tables: Sequence[Table], folder: Path, endings: Sequence[str] = tuple(_WRITERS)
) -> list[str]:
    """Write the tables of each measure to one CSV and one file per format.

    Returns:
        The measures' names, which are the files' names.
    """
    names = []
    for name, group in groupby(tables, key=lambda table: table.measure.name):
        measured = list(group)
        atomic.write_text(folder / f"{name}.csv", formats.to_csv(formats.tidy(measured)))
        for ending in endings:
            text = "\n".join(map(_WRITERS[ending], measured))
            head = latex.HEADER if ending == "tex" else ""
            atomic.write_text(folder / f"{name}.{ending}", head + text)
        names.append(name)
    return names


def write_significance(comparisons: pd.DataFrame, pairs: pd.DataFrame, folder: Path) -> str:
    """Write all comparisons as CSV and the pairs in the other formats; return the files' name."""
    texts = readable(pairs)
    columns = 4  # backbone, shots and two methods
    atomic.write_text(folder / f"{SIGNIFICANCE_FILE}.csv", formats.to_csv(comparisons))
    for ending, text in (
        ("md", formats.frame_to_markdown(texts, SIGNIFICANCE, columns)),
        (
            "tex",
            latex.HEADER + latex.frame_to_latex(texts, SIGNIFICANCE, SIGNIFICANCE_FILE, columns),
        ),
        ("html", formats.frame_to_html(texts, SIGNIFICANCE, SIGNIFICANCE_FILE)),
    ):
        atomic.write_text(folder / f"{SIGNIFICANCE_FILE}.{ending}", text)
    return SIGNIFICANCE_FILE
