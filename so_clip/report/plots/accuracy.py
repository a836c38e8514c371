"""Accuracy against the number of shots, and against peak memory."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pandas as pd

from so_clip.report.averages import averages, few_shot_runs
from so_clip.report.plots import labels, style
from so_clip.report.plots.drawing import Drawing
from so_clip.report.plots.style import Line
from so_clip.report.read import ROW
from so_clip.report.sentences import about_items
from so_clip.report.wording import wording_of

AVERAGE = "Average"
_ACCURACY = "accuracy_percent"


def accuracy_vs_shots(runs: pd.DataFrame, lines: Sequence[Line]) -> Iterator[Drawing]:
    """Draw, for each backbone with several numbers of shots, a panel per dataset and an average."""
    few_shot = few_shot_runs(runs)
    backbones = few_shot["backbone"].unique()
    for backbone, backbone_runs in few_shot.groupby("backbone", sort=True):
        trained = backbone_runs[backbone_runs["method"] != style.ZERO_SHOT]
        numbers = pd.concat(
            [_against_shots(line, trained) for line in lines] or [pd.DataFrame()],
            ignore_index=True,
        )
        if numbers.empty or numbers["shots"].nunique() < 2:
            continue
        zero_shot = zero_shot_accuracy(backbone_runs)
        average = ""
        if AVERAGE in set(numbers["dataset"]):
            average = (
                " The average is the tables' average of the datasets' means; it has no band if "
                "datasets have different seeds."
            )
        several = len(backbones) > 1
        yield Drawing(
            "accuracy_vs_shots" + (f"_{style.in_file(str(backbone))}" if several else ""),
            "Accuracy against shots",
            "Test accuracy in percent: mean over seeds, band ± one standard deviation"
            f"{'; the dashed line is zero-shot CLIP' if zero_shot else ''}."
            f"{average}{style.others(trained, lines)}{about_items(runs)}",
            partial(_draw_shots, numbers, lines, zero_shot, wording_of(runs).training),
            numbers,
            choice=str(backbone) if several else "",
        )


def _against_shots(line: Line, runs: pd.DataFrame) -> pd.DataFrame:
    """Return mean and deviation over seeds by dataset and shots, and for the average.

    The average is the tables' average: over all datasets of the report, or missing.
    """
    line_runs = line.of(runs)
    cells = line_runs.groupby(["dataset", "shots"])[_ACCURACY].agg(["mean", "std", "count"])
    parts = [cells.reset_index()]
    datasets = runs["dataset"].nunique()
    if datasets > 1:
        average = [
            {"dataset": AVERAGE, "shots": shots, "mean": mean, "std": std, "count": seeds}
            for (_, shots, *_), (mean, std, seeds) in averages(
                line_runs, _ACCURACY, datasets
            ).items()
        ]
        parts += [pd.DataFrame(average)] if average else []
    return (
        pd.concat(parts, ignore_index=True)
        .rename(columns={"count": "runs"})
        .assign(method=line.title, variant=line.variant)
    )


def zero_shot_accuracy(runs: pd.DataFrame) -> dict[str, float]:
    """Return zero-shot CLIP's accuracy in percent by dataset, and the average.

    It comes from zero-shot CLIP's own runs, or from what the other runs measured before training.
    """
    zero_shot = runs[runs["method"] == style.ZERO_SHOT].groupby("dataset")[_ACCURACY].mean()
    column = "zero_shot_accuracy_percent"
    measured = runs.groupby("dataset")[column].median() if column in runs else zero_shot
    found = {str(name): float(value) for name, value in zero_shot.combine_first(measured).items()}
    if found and len(found) == runs["dataset"].nunique():
        found[AVERAGE] = sum(found.values()) / len(found)
    return {name: value for name, value in found.items() if value == value}


def _draw_shots(
    numbers: pd.DataFrame,
    lines: Sequence[Line],
    zero_shot: dict[str, float],
    training: str,
    narrow: bool,
) -> Any:
    datasets = sorted(set(numbers["dataset"]) - {AVERAGE})
    names = ([AVERAGE] if AVERAGE in set(numbers["dataset"]) else []) + datasets
    figure, axes = style.panels(len(names), narrow=narrow)
    shots = sorted(numbers["shots"].unique())
    for axis, name in zip(axes, names, strict=True):
        style.panel_title(axis, name)
        if name in zero_shot:
            style.zero_shot_line(axis, zero_shot[name])
        for line in lines:
            points = line.of(numbers[numbers["dataset"] == name], "method").sort_values("shots")
            style.plot_band(axis, points["shots"], points["mean"], points["std"], line)
        axis.set_xscale("log", base=2)
        axis.set_xticks(shots, [str(shot) for shot in shots])
        axis.minorticks_off()
        axis.margins(x=0.06)
    style.label_axes(axes, training, "test accuracy (%)")
    style.legend_below(figure, axes)
    return figure


def accuracy_vs_memory(runs: pd.DataFrame, lines: Sequence[Line]) -> Iterator[Drawing]:
    """Draw, for each backbone and number of shots, one point per method."""
    few_shot = few_shot_runs(runs)
    few_shot = few_shot[few_shot["peak_memory_mib"] > 0]
    drawn = style.one_variant_each(few_shot)
    several = few_shot["backbone"].nunique() > 1
    for backbone, backbone_runs in few_shot.groupby("backbone", sort=True):
        is_zero_shot = backbone_runs["method"] == style.ZERO_SHOT
        zero_shot, trained = backbone_runs[is_zero_shot], backbone_runs[~is_zero_shot].merge(drawn)
        for shots, at_shots in trained.groupby("shots", sort=True):
            shared = _shared_datasets(at_shots)
            both = pd.concat([zero_shot, at_shots])
            numbers = _against_memory(both[both["dataset"].isin(shared)])
            if len(numbers) < 2:
                continue
            choice = [wording_of(runs).in_shots(int(shots)), *([str(backbone)] if several else [])]
            yield Drawing(
                "_".join(["accuracy_vs_memory", *map(style.in_file, choice)]),
                "Accuracy against peak memory",
                _memory_caption(len(shared), choice[0]) + about_items(runs),
                partial(_draw_memory, numbers, lines),
                numbers,
                choice=", ".join(choice),
            )


def _shared_datasets(runs: pd.DataFrame) -> list[str]:
    """Return the datasets on which at least half of the methods have runs.

    A dataset with runs of one method only would leave all other methods without an average.
    """
    methods = runs.groupby("dataset")["method_title"].nunique()
    return methods.index[2 * methods >= runs["method_title"].nunique()].tolist()


def _memory_caption(datasets: int, shots: str) -> str:
    over = f" and {datasets} datasets (methods with runs on all of them)" if datasets > 1 else ""
    return (
        f"Test accuracy and peak memory at {shots}, mean over seeds{over}; bars: "
        "± one standard deviation of the accuracy. Up and to the left is better; the grey line "
        "joins the methods that no other method beats in both."
    )


def _against_memory(runs: pd.DataFrame) -> pd.DataFrame:
    """Return both means and the deviation of each method and variant with runs on all datasets."""
    datasets = runs["dataset"].nunique()
    memory = averages(runs, "peak_memory_mib", datasets)
    methods = runs.groupby(ROW)["method"].first()
    return pd.DataFrame(
        {
            "method": methods[key],
            "method_title": key[2],
            "variant": key[3],
            _ACCURACY: mean,
            "accuracy_std": std,
            "peak_memory_mib": memory[key][0],
            "runs": seeds,
        }
        for key, (mean, std, seeds) in averages(runs, _ACCURACY, datasets).items()
    )


def _draw_memory(numbers: pd.DataFrame, lines: Sequence[Line], narrow: bool) -> Any:
    from matplotlib.figure import Figure

    width, height = (6.6, 4.2) if len(numbers) < 15 else (7.5, 6.5)
    figure = Figure(
        figsize=(style.NARROW_INCHES if narrow else width, height), layout="constrained"
    )
    axis = figure.subplots()
    looks = {line.title: line for line in lines}
    memory = numbers["peak_memory_mib"]
    style.plain_log(axis.xaxis, memory)
    axis.set_xlabel("peak memory (MiB, log scale)")
    axis.set_ylabel("test accuracy (%)")
    axis.set_xlim(memory.min() / 1.12, memory.max() * 1.35)
    axis.margins(y=0.09)
    front = _front(numbers)
    axis.plot(
        front["peak_memory_mib"],
        front[_ACCURACY],
        color=style.GRID,
        linewidth=2.5,
        zorder=1,
        solid_capstyle="round",
    )
    # Coloured methods are first, so their names get the best places.
    is_grey = [title not in looks for title in numbers["method_title"]]
    numbers = numbers.assign(is_grey=is_grey).sort_values("is_grey", kind="stable")
    rows: list[Any] = list(numbers.itertuples())
    texts = [_draw_method(axis, row, looks.get(row.method_title)) for row in rows]
    axis.set_xlim(axis.get_xlim())
    axis.set_ylim(axis.get_ylim())
    labels.place(axis, texts, [(row.peak_memory_mib, row.accuracy_percent) for row in rows])
    return figure


def _draw_method(axis: Any, row: Any, line: Line | None) -> Any:
    """Draw one point with its deviation; return its label."""
    zero_shot = row.method == style.ZERO_SHOT
    colour = line.colour if line else (style.INK if zero_shot else style.MUTED)
    axis.errorbar(
        row.peak_memory_mib,
        row.accuracy_percent,
        yerr=None if math.isnan(row.accuracy_std) else row.accuracy_std,
        color=colour,
        elinewidth=0.8,
        marker=line.marker if line else ("*" if zero_shot else "o"),
        markersize=8 if zero_shot else (6.5 if line else 3.5),
        linestyle="none",
        zorder=3 if line else 2,
    )
    return axis.text(
        row.peak_memory_mib,
        row.accuracy_percent,
        style.wrapped(row.method_title, 0.5 * axis.figure.get_figwidth(), 8),
        fontsize=8 if line else 7,
        fontweight="bold" if row.method == "so" else "normal",
        color=style.INK if line else style.MUTED,
        zorder=4,
    )


def _front(numbers: pd.DataFrame) -> pd.DataFrame:
    """Return the Pareto front of accuracy and memory, sorted by memory."""
    by_memory = numbers.sort_values(["peak_memory_mib", _ACCURACY], ascending=[True, False])
    best = by_memory[_ACCURACY].cummax()
    return by_memory[(by_memory[_ACCURACY] == best) & ~best.duplicated()]
