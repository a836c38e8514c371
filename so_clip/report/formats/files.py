"""Write tables to files, in each requested format."""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

import pandas as pd

from so_clip.report.formats import latex
from so_clip.report.formats import text as formats
from so_clip.report.formats.numbers import readable
from so_clip.report.pairs import Pairs
from so_clip.report.table import Table
from so_clip.system import atomic

SIGNIFICANCE_FILE = "significance"
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


def write_significance(comparisons: pd.DataFrame, parts: Sequence[Pairs], folder: Path) -> str:
    """Write all comparisons as CSV and the pairs in the other formats; return the files' name."""
    atomic.write_text(folder / f"{SIGNIFICANCE_FILE}.csv", formats.to_csv(comparisons))
    texts: dict[str, list[str]] = {"md": [], "tex": [latex.HEADER], "html": []}
    for part in parts:
        frame = readable(part.frame)
        texts["md"].append(formats.frame_to_markdown(frame, part.caption, part.texts))
        texts["tex"].append(latex.frame_to_latex(frame, part.caption, part.name, part.texts))
        texts["html"].append(formats.frame_to_html(frame, part.caption, part.name))
    for ending, pieces in texts.items():
        head = pieces.pop(0) if ending == "tex" else ""
        atomic.write_text(folder / f"{SIGNIFICANCE_FILE}.{ending}", head + "\n".join(pieces))
    return SIGNIFICANCE_FILE
