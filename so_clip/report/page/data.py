"""Runs and tables as compact JSON for the page: 20,000 runs in a few megabytes.

Columns, not rows; a column of few values is those values and an index into them a run.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from so_clip.report.read import Runs
from so_clip.report.tables import Cell, Table
from so_clip.results.run_files import SKIPPED

# What the page's table of runs shows, in order: the column of metrics.json, its heading, digits.
COLUMNS = (
    ("method_title", "method", None),
    ("variant", "settings", None),
    ("accuracy_percent", "accuracy (%)", 2),
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
# A column whose values are so few is written as those and an index.
_FEW = 0.5


@dataclass(frozen=True)
class Frame:
    """A plain table for the page; `caption` says how it is to be read."""

    title: str
    caption: str
    table: pd.DataFrame


def run_data(runs: Runs) -> dict[str, Any]:
    """Return all runs for the page.

    Returns:
        `count`; `folder`, each run's name on the page; `columns` as of COLUMNS, those that the runs
        have; `settings`, each run's, by dotted key; `results_dir`.
    """
    frame = runs.frame
    if "train_flops" in frame:
        flops = pd.to_numeric(frame["train_flops"], errors="coerce")
        frame = frame.assign(train_tflops=flops / 1e12)
    columns = [
        {"key": key, "title": title, "digits": digits, **_column(frame[key].tolist(), digits)}
        for key, title, digits in COLUMNS
        if key in frame
        and frame[key].notna().any()
        # Of what hardly any run has done, nothing is said where none has.
        and not (key in SKIPPED.values() and not frame[key].any())
    ]
    flat = [_flat(settings) for settings in frame["settings"]]
    keys = dict.fromkeys(key for each in flat for key in each)
    return {
        "count": len(frame),
        "results_dir": str(runs.results_dir),
        "folder": folder_names(runs),
        "columns": columns,
        "settings": {key: _column([each.get(key) for each in flat], None) for key in sorted(keys)},
    }


def folder_names(runs: Runs) -> list[str]:
    """Return each run's folder relative to the folder of all, which names it on the page."""
    root = str(runs.results_dir)
    return [Path(os.path.relpath(folder, root)).as_posix() for folder in runs.frame["folder"]]


def table_data(table: Table) -> dict[str, Any]:
    """Return one table for the page: a row is method, title, settings, source and its cells.

    A cell is [mean, std, runs, best, uncertainty]; None where there is none.
    """
    return {
        "name": table.name,
        "figure": table.figure.name,
        "backbone": table.backbone,
        "caption": table.caption,
        "usual_runs": table.usual_runs,
        "notes": list(table.notes),
        "commands": list(table.commands),
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


def frame_data(frames: Sequence[Frame]) -> list[dict[str, Any]]:
    """Return plain tables for the page."""
    return [
        {
            "title": frame.title,
            "caption": frame.caption,
            "columns": [str(column) for column in frame.table.columns],
            "rows": [
                [_significant(value) for value in row]
                for row in frame.table.itertuples(index=False)
            ],
        }
        for frame in frames
    ]


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
    values = [_scalar(cell.mean, 4), _scalar(cell.std, 4), cell.runs]
    if cell.best or math.isfinite(cell.uncertainty):
        values += [int(cell.best), _scalar(cell.uncertainty, 4)]
    return values


def _column(values: Sequence[Any], digits: int | None) -> dict[str, Any]:
    """Return `all` for one value, `values` and `index` for few, or else the `values` alone."""
    plain = [_scalar(value, digits) for value in values]
    # 1 and 1.0 are one value, True and 1 are not.
    places: dict[tuple[type, Any], int] = {}
    index = [places.setdefault((type(value), value), len(places)) for value in plain]
    distinct = [value for _, value in places]
    if len(distinct) == 1:
        return {"all": distinct[0]}
    if len(distinct) > _FEW * len(plain):
        return {"values": plain}
    return {"values": distinct, "index": index}


def _scalar(value: Any, digits: int | None) -> Any:
    """Return a value for JSON: a rounded number, text, or None for what is missing."""
    if value is None or value is pd.NA or isinstance(value, (bool, str)):
        return value if value is not pd.NA else None
    if isinstance(value, int):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    if not math.isfinite(number):
        return None
    if digits is not None:
        number = round(number, digits)
    return int(number) if number == int(number) else number


def _significant(value: Any) -> Any:
    """Return a value for JSON, a number to six significant digits: a p-value may be tiny."""
    plain = _scalar(value, None)
    return float(f"{plain:.6g}") if isinstance(plain, float) else plain


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by dotted key; lists as JSON."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            flat[f"{prefix}{key}"] = json.dumps(value, ensure_ascii=False)
        else:
            flat[f"{prefix}{key}"] = value
    return flat
