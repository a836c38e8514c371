"""The tables as CSV and JSON, and the plot of the curves, in a folder."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from so_clip.report.formats.text import to_csv
from so_clip.rescore.plot import NAME, write_plot
from so_clip.rescore.tables import Tables
from so_clip.system import atomic
from so_clip.system.commands import install


def write_tables(tables: Tables, folder: Path) -> tuple[list[str], list[str]]:
    """Write each table as CSV, all as rescore.json, and the curves as a plot.

    Returns:
        The names of the files; and remarks, such as that matplotlib is missing.

    Raises:
        InputError: the folder cannot be written.
    """
    frames = {"scores": tables.scores, "votes": tables.votes, NAME: tables.curves}
    names, remarks = [], []
    for name, frame in frames.items():
        if len(frame):
            atomic.write_text(folder / f"{name}.csv", to_csv(frame))
            names.append(f"{name}.csv")
    if len(tables.curves) and find_spec("matplotlib") is None:
        remarks = [f"no plot: matplotlib is missing. Get it with: {install('so-clip[report]')}"]
    elif len(tables.curves):
        remarks = write_plot(tables.curves, folder)
        names += [f"{NAME}.svg", f"{NAME}.png"]
    document = {name: _records(frame) for name, frame in frames.items()}
    atomic.write_json(folder / "rescore.json", document | {"left_out": list(tables.left_out)})
    return [*names, "rescore.json"], remarks


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the lines of a frame as JSON values, None for a missing number."""
    records: list[dict[str, Any]] = (
        frame.astype(object).where(frame.notna(), None).to_dict("records")
    )
    return records
