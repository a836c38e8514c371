"""Compares every number that is text in a plot's SVG with the plot's CSV.

A tick is true if all ticks of its axis are at the places of their numbers, and if the drawn points,
read by these ticks, are the points of the CSV. Other numbers must stand in the CSV.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd

# The columns of x and y in the CSV, by the beginning of the plot's name.
POINTS = {
    "accuracy_vs_shots": ("shots", "mean"),
    "accuracy_vs_memory": ("peak_memory_mib", "accuracy_percent"),
    "training_loss": ("step", "mean"),
    "training_accuracy": ("step", "mean"),
    "support": ("layer", "changed_percent"),
}
_NUMBER = re.compile(r"(?<![\w.])[-−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?", re.IGNORECASE)


def texts(svg: str) -> list[str]:
    """Return all texts of an SVG in order."""
    return [(node.text or "").strip() for node in _nodes(svg, "text")]


def commented_texts(svg: str) -> list[str]:
    """Return the texts that matplotlib drew as paths: a comment stands before each."""
    return [text.strip() for text in re.findall(r"<!--(.*?)-->", svg, re.DOTALL)]


def numbers(text: str) -> list[float]:
    """Return the numbers in a text, but not the digits inside a word."""
    return [float(found.replace("−", "-").replace(",", "")) for found in _NUMBER.findall(text)]


def wrong_numbers(name: str, svg: str, table: pd.DataFrame) -> list[str]:
    """Return a line for each number in a plot's SVG that its CSV does not give."""
    root = ElementTree.fromstring(svg[svg.index("<svg") :])
    known = _known(table)
    wrong = []
    points: list[tuple[float, float]] = []
    labelled = [_Scale.of(axis) for axis in _groups(root, "matplotlib.axis_")]
    for axes in _groups(root, "axes_"):
        scales = [_Scale.of(axis).shared(labelled) for axis in _groups(axes, "matplotlib.axis_")]
        wrong += [f"{text} is not at its place" for scale in scales for text in scale.misplaced()]
        loose = [node for group in axes.findall("*") if _id(group).startswith("text_")
                 for node in group.iter() if _is(node, "text")]  # fmt: skip
        if name.startswith("kappa_t") and len(scales) == 2 and scales[0].labels:
            wrong += _wrong_cells(loose, scales, table)
        else:
            wrong += _unknown(loose, known)
        if all(scale.is_numeric and scale.labels for scale in scales):
            points += _points(axes, scales)
    for group in root.iter():
        if _id(group).startswith("legend_"):
            wrong += _unknown((node for node in group.iter() if _is(node, "text")), known)
    columns = next((pair for start, pair in POINTS.items() if name.startswith(start)), None)
    if columns is not None:
        wrong += _missing(points, table[list(columns)].dropna().to_numpy())
    return wrong


@dataclass(frozen=True)
class _Scale:
    """An axis: its ticks' labels and places, and whether its marks are in pixels of the data."""

    labels: tuple[str, ...]
    places: tuple[float, ...]
    is_numeric: bool

    @classmethod
    def of(cls, axis: Any) -> "_Scale":
        found, marked = [], True
        for group in axis.findall("*"):
            if not (_id(group).startswith(("xtick_", "ytick_"))):
                continue
            (text, *_) = [*(node for node in group.iter() if _is(node, "text")), None]
            marks = [node for node in group.iter() if _is(node, "use")]
            label = (text.text or "").strip() if text is not None else ""
            if not label and not marks:
                continue
            marked &= bool(marks)
            key = "x" if _id(group).startswith("x") else "y"
            found.append((label, float((marks[-1] if marks else text).get(key))))
        # Minor ticks have no label; the axis of an inner panel has none at all.
        found = [pair for pair in found if pair[0]] or found
        labels = tuple(label for label, _ in found if label)
        return cls(labels, tuple(place for _, place in found), marked and bool(found))

    def shared(self, labelled: Iterable["_Scale"]) -> "_Scale":
        """Return this axis, or the one that has the labels of its ticks."""
        if self.labels:
            return self
        same = (s for s in labelled if s.labels and len(s.places) == len(self.places))
        return next((s for s in same if np.allclose(s.places, self.places)), self)

    def misplaced(self) -> list[str]:
        if not self.is_numeric:
            return []
        values = [numbers(label)[0] for label in self.labels]
        return [
            label
            for label, value, place in zip(self.labels, values, self.places, strict=True)
            if abs(self.value(place) - value) > 2e-3 * max(map(abs, values))
        ]

    def value(self, place: float) -> float:
        """Read a place by the first and last tick, on the scale that fits the other ticks."""
        values = np.array([numbers(label)[0] for label in self.labels])
        places = np.array(self.places)
        if len(values) == 1:
            return float(values[0]) if abs(place - places[0]) < 0.01 else math.nan
        fits = [(values, lambda read: read)]
        if (values > 0).all():
            fits.append((np.log(values), math.exp))
        share = (places - places[0]) / (places[-1] - places[0])
        errors = [
            np.abs(scaled[0] + share * (scaled[-1] - scaled[0]) - scaled).max() / np.ptp(scaled)
            for scaled, _ in fits
        ]
        scaled, back = fits[int(np.argmin(errors))] if len(values) > 2 else fits[0]
        at = (place - places[0]) / (places[-1] - places[0])
        return float(back(scaled[0] + at * (scaled[-1] - scaled[0])))


def _wrong_cells(cells: Iterable[Any], scales: list[_Scale], table: pd.DataFrame) -> list[str]:
    """Return the cells of a heat map whose texts are not those of their κ and T in the CSV."""
    wrong = []
    titles = set(table["dataset"])
    for cell in cells:
        if cell.text.strip() in titles:
            continue
        place = {"T": float(cell.get("x")), "density_ratio": float(cell.get("y"))}
        rows = table
        for (column, at), scale in zip(place.items(), scales, strict=True):
            distances = [abs(place - at) for place in scale.places]
            label = scale.labels[distances.index(min(distances))]
            rows = rows[np.isclose(rows[column], float(label), rtol=1e-5)]
        column = "std" if "±" in cell.text else "mean"
        if cell.text.strip("± \n") not in {f"{value:.1f}" for value in rows[column]}:
            wrong.append(f"cell {cell.text!r} at {place}")
    return wrong


def _unknown(nodes: Iterable[Any], known: set[float]) -> Iterator[str]:
    for node in nodes:
        for number in numbers(node.text or ""):
            if number not in known:
                yield f"{number} in {node.text!r}"


def _known(table: pd.DataFrame) -> set[float]:
    """Return the numbers in the texts of a CSV."""
    columns = table.select_dtypes(exclude="number")
    return {n for name in columns for text in columns[name].unique() for n in numbers(str(text))}


def _points(axes: Any, scales: list[_Scale]) -> Iterator[tuple[float, float]]:
    """Yield the drawn points of a panel, read by its ticks."""
    for group in axes.findall("*"):
        if not _id(group).startswith("line2d_"):
            continue
        for node in group.iter():
            pairs = []
            if _is(node, "use"):
                pairs = [(node.get("x"), node.get("y"))]
            elif _is(node, "path") and node.get("clip-path"):
                pairs = re.findall(r"[ML] (\S+) (\S+)", node.get("d"))
            for x, y in pairs:
                yield scales[0].value(float(x)), scales[1].value(float(y))


def _missing(points: list[tuple[float, float]], wanted: Any) -> Iterator[str]:
    drawn = np.array(points)
    if not len(drawn):
        return
    drawn = drawn[np.isfinite(drawn).all(axis=1)]
    spans = np.maximum(np.ptp(drawn, axis=0), 1e-12)
    for point in wanted:
        if (np.abs(drawn - point) / spans).max(axis=1).min() > 5e-3:
            yield f"the point {point.tolist()} is not drawn"


def _groups(node: Any, start: str) -> list[Any]:
    return [group for group in node.iter() if _id(group).startswith(start)]


def _nodes(svg: str, kind: str) -> Iterator[Any]:
    return (node for node in ElementTree.fromstring(svg[svg.index("<svg") :]).iter()
            if _is(node, kind))  # fmt: skip


def _id(node: Any) -> str:
    return node.get("id") or ""


def _is(node: Any, kind: str) -> bool:
    return str(node.tag).rpartition("}")[2] == kind
