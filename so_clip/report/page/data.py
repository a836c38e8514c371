"""Runs and tables as JSON for the page: runs by column, so 20,000 runs take a few megabytes."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from so_clip.report.formats.numbers import digits_of
from so_clip.report.read import Runs
from so_clip.report.table import Cell, Table
from so_clip.report.wording import IMAGE_WORDS
from so_clip.results.run_files import SKIPPED, TASK, flat_options

# The page's table of runs, in order: column of metrics.json, heading, digits (None: a text).
COLUMNS = (
    ("method_title", "method", None),
    ("variant", "settings", None),
    ("accuracy_percent", "accuracy (%)", 2),
    ("accuracy_low_percent", "95 % interval: low (%)", 2),
    ("accuracy_high_percent", "high (%)", 2),
    ("majority_percent", "largest class (%)", 2),
    (TASK, "task", None),
    ("dataset", "dataset", None),
    ("shots", "shots", 0),
    ("seed", "seed", 0),
    ("zero_shot_accuracy_percent", "zero-shot (%)", 2),
    ("new_accuracy_percent", "new classes (%)", 2),
    ("harmonic_mean_percent", "harmonic mean (%)", 2),
    ("transfer_accuracy_percent", "other datasets (%)", 2),
    ("mean_class_accuracy_percent", "mean over classes (%)", 2),
    ("expected_calibration_error_percent", "calibration error (%)", 2),
    ("peak_memory_mib", "memory (MiB)", 1),
    ("train_seconds", "training (s)", 1),
    ("train_tflops", "training (TFLOP)", 3),
    (SKIPPED["train"], "skipped training images", 0),
    (SKIPPED["test"], "skipped test images", 0),
    ("steps", "steps", 0),
    ("trainable_parameters", "trained weights", 0),
    ("backbone", "backbone", None),
    ("finished_at", "finished", None),
)


def run_data(runs: Runs, out: Path) -> dict[str, Any]:
    """Return all runs for the page in the folder `out`.

    Returns:
        `count`; `folder`, each run's name on the page; `columns`, those of COLUMNS that have
        values; `settings`, a column for each dotted option; `results_dir`, and `results_link`, a
        relative URL of it.
    """
    frame = runs.frame
    if TASK in frame:
        frame = frame.assign(**{TASK: frame[TASK].fillna(IMAGE_WORDS.task)})
    if "train_flops" in frame:
        flops = pd.to_numeric(frame["train_flops"], errors="coerce")
        frame = frame.assign(train_tflops=flops / 1e12)
    columns = [
        {"key": key, "title": title, "digits": digits, **_column(frame[key].tolist())}
        for key, title, digits in COLUMNS
        if key in frame
        and frame[key].notna().any()
        # The columns of skipped images are shown only if a run skipped some.
        and not (key in SKIPPED.values() and not frame[key].any())
    ]
    flat = [flat_options(settings) for settings in frame["settings"]]
    options = sorted({option for settings in flat for option in settings})
    return {
        "count": len(frame),
        "results_dir": str(runs.results_dir),
        "results_link": _link(runs.results_dir, out),
        "folder": folder_names(runs),
        "columns": columns,
        "settings": {
            option: _column([settings.get(option) for settings in flat]) for option in options
        },
    }


def _link(folder: Path, start: Path) -> str | None:
    """Return a relative URL from `start` to `folder`; None between two drives of Windows."""
    try:
        return quote(Path(os.path.relpath(folder.resolve(), start.resolve())).as_posix())
    except ValueError:
        return None


def folder_names(runs: Runs) -> list[str]:
    """Return each run's folder relative to the results folder: the run's name on the page."""
    root = str(runs.results_dir)
    return [Path(os.path.relpath(folder, root)).as_posix() for folder in runs.frame["folder"]]


def table_data(table: Table) -> dict[str, Any]:
    """Return one table for the page: a row is method, title, settings, source and its cells.

    A cell is [mean, std, runs, best, uncertainty, interval], or None if it is empty. Its interval
    is [low, high] or None.
    """
    return {
        "name": table.name,
        "measure": table.measure.name,
        "backbone": table.backbone,
        "caption": table.caption,
        "usual_runs": table.usual_runs,
        "notes": list(table.notes),
        "datasets": table.datasets,
        "columns": [
            {"key": column.key, "title": column.title, "digits": column.decimals}
            for column in table.columns
        ],
        "blocks": [
            {
                "shots": block.shots,
                "title": block.title,
                "rows": [
                    [row.method, row.title, row.variant, row.source]
                    + [_cell(row.cells.get(column.key)) for column in table.columns]
                    for row in block.rows
                ],
            }
            for block in table.blocks
        ],
    }


def frame_data(name: str, title: str, caption: str, table: pd.DataFrame) -> dict[str, Any]:
    """Return a plain table for the page; `name` is that of its files, `caption` explains it."""
    return {
        "name": name,
        "title": title,
        "caption": caption,
        "columns": [
            {"title": str(column), "digits": digits_of(table[column])} for column in table.columns
        ],
        "rows": [list(map(scalar, row)) for row in table.itertuples(index=False)],
    }


def script_json(value: Any) -> str:
    """Return compact JSON that is safe inside a <script> element, whatever texts it holds."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Half a surrogate pair, as in a badly named file, cannot be written as UTF-8.
    text = text.encode("utf-8", "backslashreplace").decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _cell(cell: Cell | None) -> list[Any] | None:
    if cell is None or not math.isfinite(cell.mean):
        return None
    return [
        scalar(cell.mean),
        scalar(cell.std),
        cell.runs,
        int(cell.best),
        scalar(cell.uncertainty),
        cell.interval and [*cell.interval],
    ]


def _column(values: Sequence[Any]) -> dict[str, Any]:
    """Return the one value of `all` runs, or else their `values`."""
    scalars = list(map(scalar, values))
    # 1 and 1.0 are one value; True and 1 are two.
    if len({(isinstance(value, bool), value) for value in scalars}) == 1:
        return {"all": scalars[0]}
    return {"values": scalars}


def scalar(value: Any) -> Any:
    """Return a value for JSON: a number, a text, or None if it is missing or not finite."""
    if value is None or value is pd.NA:
        return None
    if isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    if not math.isfinite(number):
        return None
    return int(number) if number == int(number) else number
