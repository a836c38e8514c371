"""SO's accuracy by its density κ and the interval T between two draws of its support."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pandas as pd

from so_clip.report.averages import few_shot_runs
from so_clip.report.plots import style
from so_clip.report.plots.drawing import Drawing
from so_clip.report.plots.style import Line
from so_clip.report.sentences import about_items
from so_clip.report.wording import wording_of

# The settings of the two axes, and the setting that may differ from cell to cell.
_AXES = ("optimizer.density_ratio", "optimizer.T")
_RATE = "optimizer.lr"
MAX_PANELS = 12


def kappa_t(runs: pd.DataFrame, lines: Sequence[Line]) -> Iterator[Drawing]:
    """Draw a heat map for each method and number of shots whose runs differ in both κ and T."""
    cells, words = _cells(few_shot_runs(runs)), wording_of(runs)
    groups: Any = cells.groupby(["method_title", "backbone", "shots", "rest"], sort=True)
    for (title, backbone, shots, rest), group in groups:
        wide = group.groupby("dataset").filter(
            lambda cells: cells["density_ratio"].nunique() > 1 and cells["T"].nunique() > 1
        )
        if wide.empty:
            continue
        datasets = sorted(wide["dataset"].unique())
        name = "_".join(
            style.in_file(part) for part in (title, backbone, f"{shots}{words.shot}", rest)
        )
        more = len(datasets) - MAX_PANELS
        yield Drawing(
            f"kappa_t_{name.strip('_')}",
            "Accuracy over κ and T",
            "Test accuracy in percent, mean over seeds, and below it one standard deviation. κ is "
            "the fraction of entries that SO keeps, T the number of steps between two draws of its "
            "support (0: it is drawn once). "
            f"{_about_rates(wide, rest)} Hatched: no run.{about_items(runs)}"
            + (f" {more} more datasets are in the CSV file." if more > 0 else ""),
            partial(_draw, wide, datasets[:MAX_PANELS]),
            wide,
            choice=", ".join([title, backbone, words.in_shots(shots)] + ([rest] if rest else [])),
        )


def _cells(runs: pd.DataFrame) -> pd.DataFrame:
    """Return mean and deviation over seeds for each κ and T, with all other settings equal.

    The learning rate may differ between cells. If one cell has several rates, each rate gets its
    own map.
    """
    rows = []
    run: Any
    for run in runs.itertuples():
        optimizer = run.settings.get("optimizer") or {}
        kappa, interval = (optimizer.get(key.partition(".")[2]) for key in _AXES)
        if isinstance(kappa, (int, float)) and isinstance(interval, int):
            parts = [part for part in str(run.variant).split(", ") if part]
            kept = [part for part in parts if part.partition("=")[0] not in (*_AXES, _RATE)]
            rows.append((run.Index, kappa, interval, ", ".join(kept), str(optimizer.get("lr"))))
    columns = ["index", "density_ratio", "T", "rest", "lr"]
    table = runs.join(pd.DataFrame(rows, columns=columns).set_index("index"), how="inner")
    map_columns = ["method_title", "backbone", "shots", "rest"]
    cell = ["dataset", *map_columns, "density_ratio", "T"]
    several = table.assign(several=table.groupby(cell)["lr"].transform("nunique") > 1)
    map_per_rate = several.groupby(map_columns)["several"].transform("any")
    named = table["rest"].where(table["rest"] == "", table["rest"] + ", ") + f"{_RATE}="
    table["rest"] = table["rest"].where(~map_per_rate, named + table["lr"])
    grouped = table.groupby([*cell, "lr"])["accuracy_percent"].agg(["mean", "std", "count"])
    return grouped.rename(columns={"count": "runs"}).reset_index()


def _about_rates(cells: pd.DataFrame, rest: str) -> str:
    """Return a sentence about the learning rates of a map."""
    if f"{_RATE}=" in rest:
        return "All cells have one learning rate; other rates have their own maps."
    if cells["lr"].nunique() > 1:
        return "Learning rates differ between cells; the CSV file has them."
    return f"All cells have the learning rate {cells['lr'].iloc[0]}."


def _draw(cells: pd.DataFrame, datasets: Sequence[str], narrow: bool) -> Any:
    kappas, intervals = (sorted(cells[key].unique()) for key in ("density_ratio", "T"))
    figure, axes = style.panels(
        len(datasets),
        width=0.62 * len(intervals) + 1.5,
        height=0.42 * len(kappas) + 0.9,
        narrow=narrow,
    )
    low, high = cells["mean"].min(), cells["mean"].max()
    for axis, dataset in zip(axes, datasets, strict=True):
        dataset_cells = cells[cells["dataset"] == dataset]
        mean, std = (
            dataset_cells.pivot(index="density_ratio", columns="T", values=key)
            .reindex(index=kappas, columns=intervals)
            .to_numpy()
            for key in ("mean", "std")
        )
        axis.set_facecolor("#ececf0")
        axis.patch.set(hatch="////", edgecolor="#c4c4cc", linewidth=0)
        image = axis.pcolormesh(mean, cmap="cividis", vmin=low, vmax=high, linewidth=0)
        _annotate(axis, mean, std, image)
        axis.grid(visible=False)
        axis.set_xticks([i + 0.5 for i in range(len(intervals))], [str(t) for t in intervals])
        axis.set_yticks([i + 0.5 for i in range(len(kappas))], style.one_notation(kappas))
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        style.panel_title(axis, dataset)
    style.label_axes(axes, "T (steps between draws)", "density κ")
    bar = figure.colorbar(image, ax=axes, label="test accuracy (%)", shrink=0.9, pad=0.02)
    bar.outline.set_visible(False)
    return figure


def _annotate(axis: Any, mean: Any, std: Any, image: Any) -> None:
    """Write its numbers into each cell, light on dark and dark on light."""
    best = mean[mean == mean].max() if (mean == mean).any() else None
    for row, column in zip(*(mean == mean).nonzero(), strict=True):
        value, spread = mean[row, column], std[row, column]
        dark = style.luminance(image.cmap(image.norm(value))) < 0.179
        spread = f"\n±{spread:.1f}" if spread == spread else ""
        axis.text(
            column + 0.5,
            row + 0.5,
            f"{value:.1f}{spread}",
            ha="center",
            va="center",
            fontsize=6.5,
            linespacing=1.05,
            fontweight="bold" if value == best else "normal",
            color="#fdfdfd" if dark else "#101014",
        )
