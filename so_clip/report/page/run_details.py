"""What a run's page shows beyond its figures: read from the run's files, kept small.

Array names end in their shape: N test images, K classes, B bins.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from so_clip.report.page.thumbnails import Thumbnails
from so_clip.report.plots.training import smoothed
from so_clip.results.run_files import (
    CURVE_FILE,
    HISTORY_FILE,
    PER_CLASS_FILE,
    PREDICTIONS_FILE,
    PROVENANCE_FILE,
    Columns,
    columns_if_whole,
    read_object,
)
from so_clip.results.scores import ADAPTED, ZERO_SHOT, reliability

# The most confident mistakes, pairs of classes in a confusion matrix (the most frequent ones), and
# points of a curve that a page shows.
MISTAKES, CONFUSIONS, POINTS = 12, 3000, 120
_LABELS = ("label", "prediction", f"{ZERO_SHOT}prediction")
_CONFIDENCES = ("confidence", f"{ZERO_SHOT}confidence")
_CLASS_FIGURES = ("images", f"{ZERO_SHOT}accuracy_percent", "accuracy_percent")


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
    names: tuple[tuple[int, str], ...] = ()
    classes = columns_if_whole(
        folder / PER_CLASS_FILE, whole=("label",), numbers=_CLASS_FIGURES, texts=("name",)
    )
    if classes is not None:
        names = tuple(zip(classes["label"].tolist(), classes["name"], strict=True))
        values["per_class"] = {key: _plain(classes[key]) for key in ("label", *_CLASS_FIGURES)}
    pictures: dict[str, str] = {}
    predictions = columns_if_whole(
        folder / PREDICTIONS_FILE, whole=_LABELS, numbers=_CONFIDENCES, texts=("path",)
    )
    if predictions is not None and all(np.isfinite(predictions[key]).all() for key in _CONFIDENCES):
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
    for key, file, column in (
        ("history", HISTORY_FILE, "loss"),
        ("curve", CURVE_FILE, "accuracy_percent"),
    ):
        curve = columns_if_whole(folder / file, numbers=("step", column))
        if curve is not None:
            values[key] = _curve(curve["step"], curve[column], column, smooth=key == "history")
    values["provenance"] = read_object(folder / PROVENANCE_FILE)
    return Details(values, names, pictures)


def confusion(predictions: Columns) -> dict[str, Any]:
    """Return the confusion matrix as [label, prediction, images] triples in one flat list.

    Of a matrix with many classes the most frequent pairs alone, and `left_out` images elsewhere.
    """
    pairs_N2 = np.stack([predictions["label"], predictions["prediction"]], axis=1)
    pairs, images = np.unique(pairs_N2, axis=0, return_counts=True)
    kept = np.argsort(-images, kind="stable")[:CONFUSIONS]
    return {
        "triples": np.column_stack([pairs[kept], images[kept]]).ravel().tolist(),
        "left_out": int(images.sum() - images[kept].sum()),
    }


def mistakes(predictions: Columns) -> list[dict[str, Any]]:
    """Return the wrong predictions that the adapted model was surest of."""
    wrong = np.flatnonzero(predictions["label"] != predictions["prediction"]).tolist()
    paths, confidence_N = predictions["path"], predictions["confidence"]
    # By path where confidences are equal, so that the same run is the same page.
    wrong.sort(key=lambda image: (-confidence_N[image], paths[image]))
    return [
        {
            "path": paths[image],
            **{key: int(predictions[key][image]) for key in _LABELS},
            "confidence": round(float(confidence_N[image]), 4),
        }
        for image in wrong[:MISTAKES]
    ]


def _bins(predictions: Columns, prefix: str) -> dict[str, list[Any]]:
    """Return images, and in percent accuracy and mean confidence, of the reliability diagram."""
    right_N = predictions["label"] == predictions[f"{prefix}prediction"]
    images_B, right_B, confidence_B = reliability(right_N, predictions[f"{prefix}confidence"])
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


def _curve(
    steps: npt.NDArray[Any], values: npt.NDArray[Any], name: str, smooth: bool
) -> dict[str, list[Any]]:
    """Return a curve at no more than about `POINTS` steps, the last one among them."""
    if smooth:
        values = smoothed(pd.Series(values)).to_numpy()
    kept = np.unique(np.linspace(0, len(steps) - 1, min(POINTS, len(steps))).round().astype(int))
    return {"step": _plain(steps[kept]), name: _plain(values[kept], digits=4)}


def _plain(values: npt.NDArray[Any], digits: int = 2) -> list[Any]:
    """Return numbers for JSON: rounded, None for what is no number."""
    return [
        None if not math.isfinite(value) else int(value) if value == int(value) else value
        for value in values.astype(np.float64).round(digits).tolist()
    ]
