"""Loss and test accuracy while training."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from so_clip.report.averages import few_shot_runs
from so_clip.report.plots import style
from so_clip.report.plots.accuracy import zero_shot_accuracy
from so_clip.report.plots.drawing import Drawing
from so_clip.report.plots.style import Line
from so_clip.results.run_files import CURVE_FILE, HISTORY_FILE, columns_if_whole

# Of 20,000 runs only these have their files read.
MAX_PANELS, MAX_SEEDS = 12, 3
# A loss is averaged over so much of the training, and drawn at so many steps.
SMOOTHED, POINTS = 0.05, 100


def loss_curves(runs: pd.DataFrame, lines: Sequence[Line]) -> Iterator[Drawing]:
    """Draw the training loss by step: a panel a dataset, a line a method."""
    for backbone, shots, some in _chosen(runs, lines):
        numbers = _read(some, lines, HISTORY_FILE, "loss", smoothed)
        if numbers.empty:
            continue
        figure = _draw(numbers, lines, "training loss (log scale)")
        for axis in figure.axes:
            if axis.get_visible() and (numbers["mean"] > 0).all():
                style.plain_log(axis.yaxis, numbers["mean"])
        yield Drawing(
            f"training_loss_{shots}shot_{style.in_file(backbone)}",
            "Training loss",
            f"Training loss, a moving average over {100 * SMOOTHED:.0f} % of the steps; mean over "
            f"at most {MAX_SEEDS} seeds, band ± one standard deviation between them."
            + style.others(some, lines),
            figure,
            numbers,
            choice=f"{backbone}, {style.in_shots(shots)}",
        )


def accuracy_curves(runs: pd.DataFrame, lines: Sequence[Line]) -> Iterator[Drawing]:
    """Draw the test accuracy along the way, of those runs that measured it."""
    for backbone, shots, some in _chosen(runs, lines):
        numbers = _read(some, lines, CURVE_FILE, "accuracy_percent", lambda values: values)
        if numbers.empty:
            continue
        figure = _draw(numbers, lines, "test accuracy (%)", zero_shot_accuracy(some))
        yield Drawing(
            f"training_accuracy_{shots}shot_{style.in_file(backbone)}",
            "Test accuracy while training",
            "Test accuracy in percent along the training (evaluation.every_steps); mean over at "
            f"most {MAX_SEEDS} seeds, band ± one standard deviation between them. It was looked "
            "at and chose nothing.",
            figure,
            numbers,
            choice=f"{backbone}, {style.in_shots(shots)}",
        )


def smoothed(values: pd.Series) -> pd.Series:
    """Return a centred moving average over `SMOOTHED` of all steps."""
    window = max(1, round(SMOOTHED * len(values)))
    return values.rolling(window, center=True, min_periods=1).mean()


def _chosen(runs: pd.DataFrame, lines: Sequence[Line]) -> Iterator[tuple[str, int, pd.DataFrame]]:
    """Yield for each backbone the number of shots with the most runs, the most shots of several."""
    few_shot = few_shot_runs(runs)
    names = {(line.title, line.variant) for line in lines}
    drawn = [
        pair in names for pair in zip(few_shot["method_title"], few_shot["variant"], strict=True)
    ]
    for backbone, some in few_shot[drawn].groupby("backbone", sort=True):
        counts = some.groupby("shots").size()
        shots = max(counts.index, key=lambda shots: (counts[shots], shots))
        yield str(backbone), int(shots), some[some["shots"] == shots]


def _read(
    runs: pd.DataFrame, lines: Sequence[Line], file: str, column: str, smooth: Any
) -> pd.DataFrame:
    """Return mean and deviation over seeds at each step, by dataset and line."""
    parts = []
    for dataset in sorted(runs["dataset"].unique())[:MAX_PANELS]:
        for line in lines:
            mine = line.of(runs[runs["dataset"] == dataset]).sort_values("seed")
            seeds = []
            for folder in mine["folder"].head(MAX_SEEDS):
                table = columns_if_whole(Path(folder) / file, numbers=("step", column))
                if table is not None:
                    values = smooth(pd.Series(table[column]))
                    seeds.append(pd.Series(values.to_numpy(), index=table["step"]))
            if seeds:
                both = pd.concat(seeds, axis=1)
                both = both.iloc[:: max(1, len(both) // POINTS)]
                cells = pd.DataFrame({"mean": both.mean(axis=1), "std": both.std(axis=1)})
                cells = cells.reset_index(names="step")
                parts.append(cells.assign(dataset=dataset, method=line.title, variant=line.variant))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _draw(
    numbers: pd.DataFrame,
    lines: Sequence[Line],
    ylabel: str,
    zero_shot: dict[str, float] | None = None,
) -> Any:
    names = sorted(numbers["dataset"].unique())
    figure, axes = style.panels(len(names))
    for axis, name in zip(axes, names, strict=True):
        axis.set_title(name)
        if zero_shot and name in zero_shot:
            style.zero_shot_line(axis, zero_shot[name])
        for line in lines:
            mine = numbers[
                (numbers["dataset"] == name)
                & (numbers["method"] == line.title)
                & (numbers["variant"] == line.variant)
            ]
            # A marker a tenth of the way, so that lines are told apart without colour.
            style.plot_band(axis, mine["step"], mine["mean"], mine["std"], line, markers=10)
    style.label_axes(axes, "step", ylabel)
    style.legend_below(figure, axes)
    return figure
