"""Loss and test accuracy during training."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from so_clip.report.averages import few_shot_runs
from so_clip.report.plots import style
from so_clip.report.plots.accuracy import zero_shot_accuracy
from so_clip.report.plots.drawing import Drawing
from so_clip.report.plots.style import Line
from so_clip.report.wording import wording_of
from so_clip.results.run_files import CURVE_FILE, HISTORY_FILE, columns_if_whole

# At most this many datasets, and seeds per line, have their files read.
MAX_PANELS, MAX_SEEDS = 12, 3
# The window of the loss's moving average as a fraction of all steps; the number of drawn points.
SMOOTHED, POINTS = 0.05, 100


def loss_curves(runs: pd.DataFrame, lines: Sequence[Line]) -> Iterator[Drawing]:
    """Draw the training loss by step: one panel per dataset, one line per method."""
    words = wording_of(runs)
    for backbone, shots, chosen in _chosen(runs, lines):
        numbers = _read(chosen, lines, HISTORY_FILE, "loss", smoothed)
        if numbers.empty:
            continue
        yield Drawing(
            f"training_loss_{shots}{words.shot}_{style.in_file(backbone)}",
            "Training loss",
            f"Training loss, a moving average over {100 * SMOOTHED:.0f} % of the steps; mean over "
            f"at most {MAX_SEEDS} seeds, band ± one standard deviation between them."
            + style.others(chosen, lines),
            partial(_draw_losses, numbers, lines),
            numbers,
            choice=f"{backbone}, {words.in_shots(shots)}",
        )


def accuracy_curves(runs: pd.DataFrame, lines: Sequence[Line]) -> Iterator[Drawing]:
    """Draw the test accuracy during training, for runs that measured it."""
    words = wording_of(runs)
    for backbone, shots, chosen in _chosen(runs, lines):
        numbers = _read(chosen, lines, CURVE_FILE, "accuracy_percent", lambda values: values)
        if numbers.empty:
            continue
        zero_shot = zero_shot_accuracy(chosen)
        yield Drawing(
            f"training_accuracy_{shots}{words.shot}_{style.in_file(backbone)}",
            "Test accuracy during training",
            "Test accuracy in percent during training (evaluation.every_steps); mean over at most "
            f"{MAX_SEEDS} seeds, band ± one standard deviation between them. It is never used for "
            "model selection.",
            partial(_draw, numbers, lines, "test accuracy (%)", zero_shot),
            numbers,
            choice=f"{backbone}, {words.in_shots(shots)}",
        )


def smoothed(values: pd.Series) -> pd.Series:
    """Return a centred moving average over the fraction `SMOOTHED` of all steps."""
    window = max(1, round(SMOOTHED * len(values)))
    return values.rolling(window, center=True, min_periods=1).mean()


def _chosen(runs: pd.DataFrame, lines: Sequence[Line]) -> Iterator[tuple[str, int, pd.DataFrame]]:
    """Yield each backbone, its shots with the most runs (the larger if tied), and these runs."""
    few_shot = few_shot_runs(runs)
    names = {(line.title, line.variant) for line in lines}
    drawn = [
        pair in names for pair in zip(few_shot["method_title"], few_shot["variant"], strict=True)
    ]
    # A list of no answers would choose columns.
    is_drawn = pd.Series(drawn, index=few_shot.index, dtype=bool)
    for backbone, group in few_shot[is_drawn].groupby("backbone", sort=True):
        counts = group.groupby("shots").size()
        shots = max(counts.index, key=lambda shots: (counts[shots], shots))
        yield str(backbone), int(shots), group[group["shots"] == shots]


def _read(
    runs: pd.DataFrame, lines: Sequence[Line], file: str, column: str, smooth: Any
) -> pd.DataFrame:
    """Return mean and deviation over seeds at each step, by dataset and line."""
    parts = []
    for dataset in sorted(runs["dataset"].unique())[:MAX_PANELS]:
        for line in lines:
            line_runs = line.of(runs[runs["dataset"] == dataset]).sort_values("seed")
            seeds = []
            for folder in line_runs["folder"].head(MAX_SEEDS):
                table = columns_if_whole(Path(folder) / file, numbers=("step", column))
                if table is not None:
                    values = smooth(pd.Series(table[column]))
                    seeds.append(pd.Series(values.to_numpy(), index=table["step"]))
            if seeds:
                by_seed = pd.concat(seeds, axis=1)
                by_seed = by_seed.iloc[:: max(1, len(by_seed) // POINTS)]
                points = pd.DataFrame({"mean": by_seed.mean(axis=1), "std": by_seed.std(axis=1)})
                points = points.reset_index(names="step")
                parts.append(
                    points.assign(dataset=dataset, method=line.title, variant=line.variant)
                )
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _draw_losses(numbers: pd.DataFrame, lines: Sequence[Line], narrow: bool) -> Any:
    figure = _draw(numbers, lines, "training loss (log scale)", {}, narrow)
    for axis in figure.axes:
        if axis.get_visible() and (numbers["mean"] > 0).all():
            style.plain_log(axis.yaxis, numbers["mean"])
    return figure


def _draw(
    numbers: pd.DataFrame,
    lines: Sequence[Line],
    ylabel: str,
    zero_shot: dict[str, float],
    narrow: bool,
) -> Any:
    names = sorted(numbers["dataset"].unique())
    figure, axes = style.panels(len(names), narrow=narrow)
    for axis, name in zip(axes, names, strict=True):
        style.panel_title(axis, name)
        style.whole_ticks(axis.xaxis)
        if name in zero_shot:
            style.zero_shot_line(axis, zero_shot[name])
        for line in lines:
            points = line.of(numbers[numbers["dataset"] == name], "method")
            # Ten markers distinguish the lines without colour.
            style.plot_band(axis, points["step"], points["mean"], points["std"], line, markers=10)
    style.label_axes(axes, "step", ylabel)
    style.legend_below(figure, axes)
    return figure
