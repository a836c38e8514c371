"""Draw the pictures of the benchmark pages from the CSV files in results/tables.

python -m scripts.docs_site.benchmark_figures [FOLDER]

Writes a light and a dark SVG file for each picture, to docs/figures by default. The same tables
give the same bytes.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from scripts.docs_site.figure_style import FIGURES, Scheme, new_figure, save_pair
from so_clip.report.plots.style import plain_log

ROOT = Path(__file__).resolve().parents[2]
TABLES = ROOT / "results" / "tables"
# Contenders of the engine's tables: a short name and the name of a colour.
CONTENDERS = {
    "reference": ("reference", "muted"),
    "adamw": ("AdamW, all weights", "purple"),
    "lora": ("CLIP-LoRA", "orange"),
    "engine_fast": ("SO, fast", "blue"),
    "engine_balanced": ("SO, balanced", "green"),
    "engine_small": ("SO, small", "indigo"),
}
DATASETS = {"eurosat": "EuroSAT", "dtd": "DTD", "sun397": "SUN397", "imagenet": "ImageNet"}
MEAN = "mean of the targets"
FACTORS = {
    "shots": "shots",
    "steps": "steps",
    "classes": "classes",
    "pretraining_pictures": "pictures of\npre-training",
    "width": "width of the\nimage tower",
}
SETTINGS = list(FACTORS)


def main(argv: list[str] | None = None) -> None:
    """Draw all pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=FIGURES)
    folder = parser.parse_args(argv).folder
    for name, draw in PICTURES.items():
        save_pair(draw, name, folder)


def kappa_t(scheme: Scheme) -> Any:
    """Accuracy over the density, one line for each T."""
    table = _read("digits_kappa_t")
    figure = new_figure(height=3.0)
    axis = figure.subplots()
    means = table.groupby(["T", "density_ratio"])["accuracy_percent"].agg(["mean", "std"])
    colours = (scheme.muted, scheme.orange, scheme.green, scheme.blue, scheme.purple)
    for colour, marker, T in zip(colours, "osD^v", sorted(table["T"].unique()), strict=True):
        own = means.loc[T]
        label = "T = 0 (first support)" if T == 0 else f"T = {T}"
        axis.plot(own.index, own["mean"], marker=marker, color=colour, label=label, markersize=5)
        if T == 10:
            low, high = own["mean"] - own["std"], own["mean"] + own["std"]
            axis.fill_between(own.index, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.axhline(
        table["zero_shot_accuracy_percent"].iloc[0], color=scheme.ink, linestyle="--", linewidth=1
    )
    axis.text(1, 61.8, "zero-shot", ha="right", color=scheme.ink, fontsize=9.5)
    axis.set_xscale("log")
    densities = sorted(table["density_ratio"].unique())
    axis.set_xticks(densities, [f"{value:g}" for value in densities])
    axis.minorticks_off()
    axis.set_xlabel("density κ (band: ± one standard deviation at T = 10)")
    axis.set_ylabel("accuracy, %")
    axis.legend(loc="lower center", ncols=2, bbox_to_anchor=(0.5, 0.1))
    return figure


def advantage(scheme: Scheme) -> Any:
    """SO's accuracy minus AdamW's along each factor, one line a density."""
    table = _read("digits_advantage")
    so = table[(table["contender"] == "so") & table["density_ratio"].isin([5e-4, 1e-2])]
    figure = new_figure(height=4.4)
    axes = figure.subplots(2, 3, sharey=True).ravel()
    for axis, factor in zip(axes, FACTORS, strict=False):
        own = so[so["factor"] == factor]
        others = [name for name in SETTINGS if name != factor]
        along = so[(so[others] == own[others].iloc[0]).all(axis=1)]
        lines = zip("os", (scheme.vermillion, scheme.blue), (5e-4, 1e-2), strict=True)
        for marker, colour, density in lines:
            line = along[along["density_ratio"] == density].sort_values(factor)
            axis.errorbar(
                line[factor], line["minus_adamw_points"], line["minus_adamw_standard_error"],
                marker=marker, color=colour, capsize=2, label=f"κ = {density:g}", markersize=5,
            )  # fmt: skip
        axis.axhline(0, color=scheme.ink, linewidth=1)
        axis.set_xscale("log")
        values = sorted(along[factor].unique())
        short = [f"{value / 1000:.0f}k" if value > 9999 else f"{value:g}" for value in values]
        axis.set_xticks(values, short)
        axis.minorticks_off()
        axis.set_xlabel(FACTORS[factor])
    axes[-1].set_axis_off()
    axes[-1].legend(*axes[0].get_legend_handles_labels(), loc="center")
    figure.supylabel("SO minus AdamW, points", fontsize=10, color=scheme.ink)
    return figure


def steps_cpu(scheme: Scheme) -> Any:
    """Seconds of a step by dataset."""
    return _contenders(scheme, _read("engine_steps_cpu"), "step_seconds", "seconds of a step")


def peaks_cuda(scheme: Scheme) -> Any:
    """Peak memory on the GPU by dataset."""
    table = _read("engine_peaks_cuda")
    return _contenders(scheme, table, "peak_memory_mib", "peak memory, MiB")


def memory_cpu(scheme: Scheme) -> Any:
    """Peak memory of a step on two datasets, by category."""
    table = _read("engine_cost_cpu")
    figure = new_figure(height=4.2)
    axes = figure.subplots(2, 1, sharex=True)
    parts = {
        "weights": scheme.muted, "gradients": scheme.purple,
        "optimizer_state": scheme.orange, "activations": scheme.blue,
    }  # fmt: skip
    for axis, dataset in zip(axes, ("eurosat", "imagenet"), strict=True):
        own = table[table["dataset"] == dataset].set_index("contender").loc[list(CONTENDERS)[::-1]]
        left = pd.Series(0.0, index=own.index)
        names = [CONTENDERS[name][0] for name in own.index]
        for part, colour in parts.items():
            width = own[f"{part}_mib"] / 1024
            axis.barh(
                names, width, left=left, color=colour, height=0.66, label=part.replace("_", " ")
            )
            left += width
        axis.set_title(DATASETS[dataset])
        axis.grid(visible=False, axis="y")
    axes[1].set_xlabel("peak memory, GiB")
    axes[0].legend(loc="center right")
    return figure


def scaling_cpu(scheme: Scheme) -> Any:
    """Peak memory and seconds of a step over classes and batch."""
    table = _read("engine_scaling_cpu")
    figure = new_figure(height=4.4)
    axes = figure.subplots(2, 2, sharey="row")
    rows = {"step_seconds": "seconds of a step", "peak_memory_mib": "peak memory, MiB"}
    for column, (name, ticks) in enumerate(
        {"classes": (10, 100, 1000), "batch": (2, 8, 32)}.items()
    ):
        part = table[table["axis"] == name].assign(value=lambda rows: rows["value"].astype(float))
        for axis, (key, label) in zip(axes[:, column], rows.items(), strict=True):
            for contender, own in part.groupby("contender", sort=False):
                title, colour = CONTENDERS[contender]
                axis.plot(own["value"], own[key], "o-", color=getattr(scheme, colour), label=title)
            plain_log(axis.yaxis, table[key].dropna())
            axis.set_xscale("log")
            axis.set_xticks(ticks, [f"{value:g}" for value in ticks])
            axis.minorticks_off()
            if column == 0:
                axis.set_ylabel(label)
        axes[1, column].set_xlabel({"classes": "classes", "batch": "images of a batch"}[name])
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def smat_tasks(scheme: Scheme) -> Any:
    """Mean accuracy of each way over the targets, with its interval."""
    table = _read("smat_tasks")
    rows = table[table["dataset"] == MEAN].iloc[::-1]
    figure = new_figure(height=4.0)
    axis = figure.subplots()
    is_smat = rows["contender"].str.startswith("smat")
    for chosen, colour, label in (
        (is_smat, scheme.vermillion, "SMAT"),
        (~is_smat, scheme.blue, "without meta-training"),
    ):
        own = rows[chosen]
        places = [i for i, flag in enumerate(chosen) if flag]
        axis.errorbar(
            own["accuracy_percent"], places, xerr=own["interval_percent"],
            fmt="o", color=colour, capsize=3, label=label,
        )  # fmt: skip
    titles = [title.replace(" (no meta-training)", "") for title in rows["title"]]
    axis.set_yticks(range(len(rows)), titles)
    axis.set_xlabel("accuracy, % (95 % interval over tasks)")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def smat_placement(scheme: Scheme) -> Any:
    """The share of the entries that the masks keep, by role and block."""
    table = _read("smat_placement")
    kept = table.assign(kept=table["kept_share"] * table["entries"])
    sums = kept.groupby(["role", "block"], sort=False)[["kept", "entries"]].sum()
    shares = (100 * sums["kept"] / sums["entries"]).unstack("block")
    figure = new_figure(height=2.9)
    axis = figure.subplots()
    colours = (scheme.blue, scheme.vermillion, scheme.green, scheme.purple)
    for marker, colour, (role, line) in zip("osD^", colours, shares.iterrows(), strict=True):
        blocks = [block + 1 for block in line.index]
        axis.plot(blocks, line, marker=marker, color=colour, label=str(role).replace("_", " "))
    axis.set_xticks(range(1, shares.shape[1] + 1))
    axis.set_ylim(0, None)
    axis.set_xlabel("block of the image tower")
    axis.set_ylabel("entries kept, %")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def rte_methods(scheme: Scheme) -> Any:
    """Mean accuracy of each method: range over seeds and interval over pairs."""
    rows = _read("rte_methods").iloc[::-1].reset_index(drop=True)
    figure = new_figure(height=3.6)
    axis = figure.subplots()
    axis.axvline(rows["majority_percent"].iloc[0], color=scheme.ink, linestyle="--", linewidth=1)
    for place, row in rows.iterrows():
        colour = scheme.vermillion if row["method"] == "so" else scheme.blue
        pairs = [row["items_low_percent"], row["items_high_percent"]]
        axis.plot(pairs, [place, place], color=colour, linewidth=7, alpha=0.3)
        seeds = [row["accuracy_percent_min"], row["accuracy_percent_max"]]
        axis.plot(seeds, [place, place], color=colour, linewidth=1.6)
        axis.plot(row["accuracy_percent"], place, "o", color=colour, markersize=6)
    axis.set_yticks(range(len(rows)), rows["title"])
    axis.set_xlabel("accuracy, %")
    return figure


def _contenders(scheme: Scheme, table: pd.DataFrame, key: str, label: str) -> Any:
    """Draw one number of each contender by dataset, with different markers, on a log axis."""
    figure = new_figure(height=3.0)
    axis = figure.subplots()
    for marker, (name, (title, colour)) in zip("xPsoD^", CONTENDERS.items(), strict=True):
        own = table[table["contender"] == name].set_index("dataset").loc[list(DATASETS)]
        axis.plot(
            list(DATASETS.values()), own[key], marker=marker, linewidth=1,
            color=getattr(scheme, colour), label=title,
        )  # fmt: skip
    plain_log(axis.yaxis, table[key].dropna())
    axis.set_ylabel(label)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _read(name: str) -> pd.DataFrame:
    table: pd.DataFrame = pd.read_csv(TABLES / f"{name}.csv")
    return table


PICTURES: dict[str, Callable[[Scheme], Any]] = {
    "digits_kappa_t": kappa_t,
    "digits_advantage": advantage,
    "engine_steps_cpu": steps_cpu,
    "engine_memory_cpu": memory_cpu,
    "engine_scaling_cpu": scaling_cpu,
    "engine_peaks_cuda": peaks_cuda,
    "smat_tasks": smat_tasks,
    "smat_placement": smat_placement,
    "rte_methods": rte_methods,
}

if __name__ == "__main__":
    main()
