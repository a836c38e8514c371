"""What a run's page shows beyond its figures: read from the run's files, kept small.

Array names end in their shape: N test images, K classes, B bins.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from so_clip.figures import ADAPTED, ZERO_SHOT, reliability
from so_clip.report.thumbnails import Thumbnails
from so_clip.report.training_plots import CURVE, HISTORY, read_columns, smoothed

# The most confident mistakes, pairs of classes in a confusion matrix (the most frequent ones), and
# points of a curve that a page shows.
MISTAKES, CONFUSIONS, POINTS = 12, 3000, 120
_PREDICTIONS, _PER_CLASS, _PROVENANCE = "predictions.csv", "per_class.csv", "provenance.json"


@dataclass(frozen=True)
class Details:
    """One run's details.

    Attributes:
        values: for the page, as JSON values.
        names: of the classes that its labels mean, [label, name] each.
        pictures: data URIs of its mistakes, by path.
    """

    values: dict[str, Any]
    names: tuple[tuple[int, str], ...]
    pictures: dict[str, str]


def read_details(folder: Path, settings: dict[str, Any], thumbnails: Thumbnails) -> Details:
    """Read what is there of a run's files. A file that is not there, or is damaged, shows nothing.

    Args:
        folder: the run's.
        settings: the run's, for where its images are.
        thumbnails: makes the pictures.
    """
    values: dict[str, Any] = {}
    classes = _per_class(folder)
    names: tuple[tuple[int, str], ...] = ()
    if classes is not None:
        columns = ("label", "images", f"{ZERO_SHOT}accuracy_percent", "accuracy_percent")
        names = tuple(zip(classes["label"].tolist(), classes["name"].tolist(), strict=True))
        values["per_class"] = {column: _plain(classes[column]) for column in columns}
    pictures: dict[str, str] = {}
    predictions = _predictions(folder)
    if predictions is not None:
        values["confusion"] = confusion(predictions)
        values["reliability"] = {
            name: _bins(predictions, prefix)
            for name, prefix in (("adapted", ADAPTED), ("zero_shot", ZERO_SHOT))
        }
        worst = mistakes(predictions)
        values["mistakes"] = worst
        values["no_pictures"] = thumbnails.reason(settings)
        found = {each["path"]: thumbnails.uri(settings, each["path"]) for each in worst}
        pictures = {path: uri for path, uri in found.items() if uri is not None}
    for key, file, column in (("history", HISTORY, "loss"), ("curve", CURVE, "accuracy_percent")):
        table = read_columns(folder / file, ("step", column))
        if table is not None:
            values[key] = _curve(table, column, smooth=key == "history")
    values["provenance"] = _provenance(folder)
    return Details(values, names, pictures)


def confusion(predictions: pd.DataFrame) -> dict[str, Any]:
    """Return the confusion matrix as [label, prediction, images] triples in one flat list.

    Of a matrix with many classes the most frequent pairs alone, and `left_out` images elsewhere.
    """
    pairs = predictions.groupby(["label", "prediction"]).size().reset_index(name="images")
    pairs = pairs.sort_values(["images", "label", "prediction"], ascending=[False, True, True])
    kept = pairs.head(CONFUSIONS)
    return {
        "triples": kept.to_numpy().ravel().tolist(),
        "left_out": int(pairs["images"].sum() - kept["images"].sum()),
    }


def mistakes(predictions: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the wrong predictions that the adapted model was surest of."""
    wrong = predictions[predictions["label"] != predictions["prediction"]]
    # By path where confidences are equal, so that the same run is the same page.
    worst = wrong.sort_values(["confidence", "path"], ascending=[False, True]).head(MISTAKES)
    return [
        {
            "path": str(row["path"]),
            **{key: int(row[key]) for key in ("label", "prediction", "zero_shot_prediction")},
            "confidence": round(float(row["confidence"]), 4),
        }
        for row in worst.to_dict("records")
    ]


def _bins(predictions: pd.DataFrame, prefix: str) -> dict[str, list[Any]]:
    """Return images, and in percent accuracy and mean confidence, of the reliability diagram."""
    right_N = (predictions["label"] == predictions[f"{prefix}prediction"]).to_numpy()
    confidence_N = predictions[f"{prefix}confidence"].to_numpy(np.float64)
    images_B, right_B, confidence_B = reliability(right_N, confidence_N)
    return {
        "images": images_B.tolist(),
        "accuracy_percent": _shares(right_B, images_B),
        "confidence_percent": _shares(confidence_B, images_B),
    }


def _shares(
    values_B: npt.NDArray[np.float64], images_B: npt.NDArray[np.int64]
) -> list[float | None]:
    pairs = zip(values_B.tolist(), images_B.tolist(), strict=True)
    return [round(100 * value / images, 2) if images else None for value, images in pairs]


def _curve(table: pd.DataFrame, column: str, smooth: bool) -> dict[str, list[Any]]:
    """Return a curve at no more than about `POINTS` steps, the last one among them."""
    values = smoothed(table["step"], table[column]) if smooth else table[column]
    kept = np.unique(np.linspace(0, len(table) - 1, min(POINTS, len(table))).round().astype(int))
    return {
        "step": [int(step) for step in table["step"].to_numpy()[kept]],
        column: _plain(values.iloc[kept], digits=4),
    }


def _plain(values: pd.Series, digits: int = 2) -> list[Any]:
    """Return numbers for JSON: rounded, None for what is no number."""
    rounded = values.astype(float).round(digits)
    return [
        None if not np.isfinite(value) else int(value) if value == int(value) else value
        for value in rounded.tolist()
    ]


def _per_class(folder: Path) -> pd.DataFrame | None:
    numbers = ["images", f"{ZERO_SHOT}accuracy_percent", "accuracy_percent"]
    table = _read(folder / _PER_CLASS, ["label", "name", *numbers])
    if table is None:
        return None
    try:
        # A class without images has no accuracy.
        return table.replace(dict.fromkeys(numbers, ""), "nan").astype(
            {"label": "int64", **dict.fromkeys(numbers, float)}
        )
    except ValueError:
        return None


def _predictions(folder: Path) -> pd.DataFrame | None:
    whole = ["label", "prediction", f"{ZERO_SHOT}prediction"]
    shares = ["confidence", f"{ZERO_SHOT}confidence"]
    table = _read(folder / _PREDICTIONS, ["path", *whole, *shares])
    if table is None:
        return None
    try:
        table = table.astype(dict.fromkeys(whole, "int64") | dict.fromkeys(shares, "float64"))
    except ValueError:
        return None
    return table if np.isfinite(table[shares].to_numpy()).all() else None


def _read(path: Path, columns: list[str]) -> pd.DataFrame | None:
    """Return columns of a CSV file as text, in which a class may be called "nan"."""
    try:
        table = pd.read_csv(path, usecols=columns, dtype=str, keep_default_na=False)
    except (OSError, ValueError):
        return None
    return table if len(table) else None


def _provenance(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / _PROVENANCE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
