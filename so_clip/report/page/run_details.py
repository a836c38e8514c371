"""The contents of a run's own page, read from the run's files.

Array names end in their shape: N test images, K classes, B bins.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from so_clip.report.page.data import scalar
from so_clip.report.page.thumbnails import Thumbnails
from so_clip.report.plots.training import smoothed
from so_clip.report.wording import IMAGE_WORDS, SENTENCE_WORDS
from so_clip.results.run_files import (
    CURVE_FILE,
    FEW_SHOT_FILE,
    HISTORY_FILE,
    PER_CLASS_FILE,
    PREDICTIONS_FILE,
    PROVENANCE_FILE,
    Columns,
    columns_if_whole,
    read_object,
)
from so_clip.results.scores import ADAPTED, ZERO_SHOT, models_in, reliability

# How many mistakes, pairs of classes in a confusion matrix, and points of a curve are shown.
MISTAKES, CONFUSIONS, POINTS = 12, 3000, 120
# Rows of sentences take less room than pictures.
WRONG_EXAMPLES = 40
# Names of both models on the page, and prefixes of their columns. A backbone without a text tower
# has no zero-shot model.
_ADAPTED = {"adapted": ADAPTED}
_BOTH = _ADAPTED | {"zero_shot": ZERO_SHOT}


@dataclass(frozen=True)
class Details:
    """One run's details.

    Attributes:
        values: JSON values for the page.
        names: (label, class name) pairs.
        pictures: thumbnails of its mistakes as data URIs, by path.
    """

    values: dict[str, Any]
    names: tuple[tuple[int, str], ...]
    pictures: dict[str, str]


def read_details(folder: Path, settings: dict[str, Any], thumbnails: Thumbnails) -> Details:
    """Read a run's files; a missing or damaged file leaves its part out.

    Args:
        folder: the run's folder.
        settings: the run's settings, which say where its images are.
        thumbnails: makes the thumbnails.
    """
    values: dict[str, Any] = {}
    names: tuple[tuple[int, str], ...] = ()
    classes = _of_models(_classes_of, folder)
    if classes is not None:
        names = tuple(zip(classes["label"].tolist(), classes["name"], strict=True))
        values["per_class"] = {key: _json(classes[key]) for key in classes if key != "name"}
    pictures: dict[str, str] = {}
    predictions = _of_models(_predictions_of, folder)
    if predictions is not None:
        values["confusion"] = confusion(predictions)
        values["reliability"] = {
            name: _bins(predictions, prefix)
            for name, prefix in _BOTH.items()
            if prefix in models_in(predictions)
        }
        worst = mistakes(predictions)
        values["mistakes"] = worst
        if IMAGE_WORDS.column in predictions:
            values["no_pictures"] = thumbnails.reason(settings)
            found = {image["path"]: thumbnails.uri(settings, image["path"]) for image in worst}
            pictures = {path: uri for path, uri in found.items() if uri is not None}
        else:
            values["draw"] = _draw(read_object(folder / FEW_SHOT_FILE))
    for key, file, column in (
        ("history", HISTORY_FILE, "loss"),
        ("curve", CURVE_FILE, "accuracy_percent"),
    ):
        curve = columns_if_whole(folder / file, numbers=("step", column))
        if curve is not None:
            values[key] = _curve(curve["step"], curve[column], column, smooth=key == "history")
    values["provenance"] = read_object(folder / PROVENANCE_FILE)
    return Details(values, names, pictures)


def _of_models(
    columns_of: Callable[[Path, Mapping[str, str]], Columns | None], folder: Path
) -> Columns | None:
    """Return columns of both models, or of the adapted one if there is no other; None if torn."""
    return columns_of(folder, _BOTH) or columns_of(folder, _ADAPTED)


def _draw(drawn: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the drawn rows of sentences by label; None if the file does not have them."""
    rows: Any = drawn.get("rows")
    labels: Any = drawn.get("labels")
    for column in (rows, labels):
        if not isinstance(column, list) or not all(type(value) is int for value in column):
            return None
    if len(rows) != len(labels):
        return None
    by_label: dict[int, list[int]] = {}
    for row, label in zip(rows, labels, strict=True):
        by_label.setdefault(label, []).append(row)
    return [{"label": label, "rows": by_label[label]} for label in sorted(by_label)]


def _classes_of(folder: Path, models: Mapping[str, str]) -> Columns | None:
    numbers = ["images", *(f"{prefix}accuracy_percent" for prefix in models.values())]
    file = folder / PER_CLASS_FILE
    return columns_if_whole(file, whole=("label",), numbers=numbers, texts=("name",))


def _predictions_of(folder: Path, models: Mapping[str, str]) -> Columns | None:
    labels = ["label", *(f"{prefix}prediction" for prefix in models.values())]
    confidences = [f"{prefix}confidence" for prefix in models.values()]
    file = folder / PREDICTIONS_FILE
    found = columns_if_whole(file, whole=labels, numbers=confidences, texts=(IMAGE_WORDS.column,))
    if found is None:  # sentences have the row of the dataset's file in place of a path
        row = SENTENCE_WORDS.column
        found = columns_if_whole(file, whole=(row, *labels), numbers=confidences)
    if found is None or not all(np.isfinite(found[key]).all() for key in confidences):
        return None
    return found


def confusion(predictions: Columns) -> dict[str, Any]:
    """Return the confusion matrix as [label, prediction, images] triples in one flat list.

    Only the most frequent pairs of classes are listed; `left_out` counts the images of the others.
    `totals` has all images of each label, as [label, images] pairs in one flat list.
    """
    pairs_N2 = np.stack([predictions["label"], predictions["prediction"]], axis=1)
    pairs, images = np.unique(pairs_N2, axis=0, return_counts=True)
    kept = np.argsort(-images, kind="stable")[:CONFUSIONS]
    return {
        "triples": np.column_stack([pairs[kept], images[kept]]).ravel().tolist(),
        "totals": np.column_stack(np.unique(pairs_N2[:, 0], return_counts=True)).ravel().tolist(),
        "left_out": int(images.sum() - images[kept].sum()),
    }


def mistakes(predictions: Columns) -> list[dict[str, Any]]:
    """Return the wrong predictions with the highest confidence of the adapted model."""
    wrong = np.flatnonzero(predictions["label"] != predictions["prediction"]).tolist()
    is_images = IMAGE_WORDS.column in predictions
    column = (IMAGE_WORDS if is_images else SENTENCE_WORDS).column
    names, confidence_N = predictions[column], predictions["confidence"]
    labels = ["label", *(f"{prefix}prediction" for prefix in models_in(predictions))]
    # Equal confidences are sorted by path or row, so the same run gives the same page.
    wrong.sort(key=lambda item: (-confidence_N[item], names[item]))
    return [
        {
            column: scalar(names[item]),
            **{key: int(predictions[key][item]) for key in labels},
            "confidence": float(confidence_N[item]),
        }
        for item in wrong[: MISTAKES if is_images else WRONG_EXAMPLES]
    ]


def _bins(predictions: Columns, prefix: str) -> dict[str, list[Any]]:
    """Return images, accuracy and mean confidence (percent) of the reliability diagram's bins."""
    correct_N = predictions["label"] == predictions[f"{prefix}prediction"]
    images_B, correct_B, confidence_B = reliability(correct_N, predictions[f"{prefix}confidence"])
    with np.errstate(invalid="ignore"):  # an empty bin has no accuracy
        return {
            "images": images_B.tolist(),
            "accuracy_percent": _json(100 * correct_B / images_B),
            "confidence_percent": _json(100 * confidence_B / images_B),
        }


def _curve(
    steps: npt.NDArray[Any], values: npt.NDArray[Any], name: str, smooth: bool
) -> dict[str, list[Any]]:
    """Return a curve at about `POINTS` steps at most, including the last step."""
    if smooth:
        values = smoothed(pd.Series(values)).to_numpy()
    kept = np.unique(np.linspace(0, len(steps) - 1, min(POINTS, len(steps))).round().astype(int))
    return {"step": _json(steps[kept]), name: _json(values[kept])}


def _json(values: npt.NDArray[Any]) -> list[Any]:
    return list(map(scalar, values.tolist()))
