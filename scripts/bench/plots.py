"""Plots of the benchmark's tables `steps`, `cost` and `scaling`, one function each."""

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import pandas as pd

from so_clip.runtime.peak_memory import CATEGORIES

COLOURS = {
    "reference": "#8a8a8a",
    "lora": "#d08a2e",
    "lora_balanced": "#deb16a",
    "lora_small": "#e8c596",
    "adamw": "#a34a6a",
    "engine_fast": "#1f6f8b",
    "engine_balanced": "#4a98b3",
    "engine_small": "#8cc3d6",
}
SHADES = dict(zip(CATEGORIES, ("#5b5b5b", "#a34a6a", "#d08a2e", "#1f6f8b"), strict=True))


def steps(table: pd.DataFrame, path: Path) -> None:
    """Draw seconds per step by dataset, with the range over rounds."""
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    datasets, contenders = _in_order(table, "dataset"), _in_order(table, "contender")
    width = 0.8 / len(contenders)
    for place, name in enumerate(contenders):
        own = table[table["contender"] == name].set_index("dataset").loc[datasets]
        middle = own["step_seconds"]
        errors = [middle - own["step_seconds_min"], own["step_seconds_max"] - middle]
        xs = [number + (place - (len(contenders) - 1) / 2) * width for number in range(len(own))]
        label = own["title"].iloc[0]
        axes.bar(xs, middle, width, yerr=errors, capsize=2, color=COLOURS[name], label=label)
    labels = [f"{name}\n{_first(table, name, 'classes')} classes" for name in datasets]
    axes.set_xticks(range(len(datasets)), labels)
    first = table.iloc[0]
    axes.set_yscale("log")
    axes.set_ylabel("seconds a step")
    axes.set_title(f"Training steps of {first['architecture']}, {first['batch']} images")
    axes.legend(fontsize=8)
    _save(figure, path)


def cost(table: pd.DataFrame, path: Path) -> None:
    """Draw FLOPs by dataset, and peak memory by category for datasets with counted memory."""
    datasets = [name for name in _in_order(table, "dataset") if not name.startswith("mean")]
    watched = [
        name
        for name in datasets
        if table[table["dataset"] == name]["peak_memory_mib"].notna().any()
    ]
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    for name in _in_order(table, "contender"):
        own = table[(table["contender"] == name) & table["dataset"].isin(datasets)]
        if len(own) == len(datasets):
            left.plot(own["dataset"], own["tflop"], "o", color=COLOURS[name], label=name)
    left.set_yscale("log")
    left.set_ylabel("TFLOP a step")
    left.tick_params(axis="x", rotation=60)
    left.legend(fontsize=8)
    bars = table[table["dataset"].isin(watched)]
    bottom = pd.Series(0.0, index=bars.index)
    labels = [f"{row.dataset} {row.contender}" for row in bars.itertuples()]
    for category, colour in SHADES.items():
        values = bars[f"{category}_mib"] / 1024
        right.barh(labels, values, left=bottom, color=colour, label=category)
        bottom += values
    right.invert_yaxis()
    right.tick_params(axis="y", labelsize=6)
    right.set_xlabel("peak GiB")
    right.legend(fontsize=8, loc="lower right")
    first = table.iloc[0]
    figure.suptitle(f"{first['architecture']}, {first['batch']} images, counted on fake tensors")
    _save(figure, path)


def scaling(table: pd.DataFrame, path: Path) -> None:
    """Draw seconds and memory of a step along each axis."""
    names = _in_order(table, "axis")
    figure, axes = plt.subplots(2, len(names), figsize=(13, 6), layout="constrained")
    for column, name in enumerate(names):
        part = table[table["axis"] == name]
        for row, key in enumerate(("step_seconds", "peak_memory_mib")):
            for contender in _in_order(part, "contender"):
                own = part[part["contender"] == contender]
                xs = own["value"].astype(str) if name == "depth" else own["value"].astype(float)
                line = {"color": COLOURS[contender], "label": contender}
                axes[row, column].plot(xs, own[key], "o-", **line)
            axes[row, column].set_yscale("log")
            if name != "depth":
                axes[row, column].set_xscale("log")
        axes[1, column].set_xlabel(name)
    axes[0, 0].set_ylabel("seconds a step")
    axes[1, 0].set_ylabel("peak MiB")
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(f"{table.iloc[0]['architecture']}, steps have DTD's shape by default")
    _save(figure, path)


def _in_order(table: pd.DataFrame, column: str) -> list[str]:
    return list(dict.fromkeys(table[column]))


def _first(table: pd.DataFrame, dataset: str, column: str) -> Any:
    return table[table["dataset"] == dataset][column].iloc[0]


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
