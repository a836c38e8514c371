"""The tables on the screen, and as CSV, JSON and a plot in a folder."""

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from so_clip import escape
from so_clip.errors import show
from so_clip.report.formats.text import MISSING, frame_to_markdown, to_csv
from so_clip.rescore.plot import NAME, write_plot
from so_clip.rescore.tables import Tables
from so_clip.results.logit_scores import BIN_COUNTS
from so_clip.system import atomic
from so_clip.system.commands import install

SCORES = (
    "Scores from kept logits. T: the temperature, fitted on so many drawn validation images of the "
    "run; a line without T has the model's own probabilities. NLL: negative log-likelihood. Brier: "
    "from 0 to 2. ECE: expected calibration error in % with so many bins"
)
VOTES = (
    "Accuracy in % of runs that differ only in the seed, on the same test images: mean of their "
    "accuracies, majority vote of their predictions, and mean of their probabilities"
)
CURVES = (
    "Accuracy in % between the zero-shot model (0) and the adapted model (1). outputs: the logits "
    "are mixed. weights: the weights are mixed, as in WiSE-FT"
)
_PERCENT, _SMALL = "{:.2f}", "{:.4f}"
_SCORE_COLUMNS = {
    "top-1": ("accuracy_percent", _PERCENT),
    "top-5": ("top5_accuracy_percent", _PERCENT),
    "class mean": ("mean_class_accuracy_percent", _PERCENT),
    "NLL": ("negative_log_likelihood", _SMALL),
    "Brier": ("brier_score", _SMALL),
    **{
        f"ECE {bins}": (f"expected_calibration_error_{bins}_bins_percent", _PERCENT)
        for bins in BIN_COUNTS
    },
}
_VOTE_COLUMNS = {
    "mean": ("single_accuracy_percent", _PERCENT),
    "majority": ("majority_accuracy_percent", _PERCENT),
    "mean probability": ("mean_probability_accuracy_percent", _PERCENT),
}


def show_tables(tables: Tables) -> None:
    """Print the tables: for people on a terminal, as Markdown in a pipe or a file."""
    console = Console(highlight=False)
    for caption, frame, texts in _screen_frames(tables):
        if not console.is_terminal:
            show(frame_to_markdown(frame, f"{caption}.", texts))
            continue
        console.print(Text(f"{escape.line(caption)}.", "bold"))
        grid = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for index, name in enumerate(frame.columns):
            is_text = index < texts
            justify: Any = "left" if is_text else "right"
            grid.add_column(
                escape.line(name), justify=justify, overflow="fold", no_wrap=not is_text
            )
        for row in frame.itertuples(index=False):
            grid.add_row(*(Text(escape.line(cell)) for cell in row))
        console.print(grid)


def write_tables(tables: Tables, folder: Path) -> tuple[list[str], list[str]]:
    """Write each table as CSV, all as rescore.json, and the curves as a plot.

    Returns:
        The names of the files; and remarks, such as that matplotlib is missing.

    Raises:
        InputError: the folder cannot be written.
    """
    frames = {"scores": tables.scores, "votes": tables.votes, NAME: tables.curves}
    names, remarks = [], []
    for name, frame in frames.items():
        if len(frame):
            atomic.write_text(folder / f"{name}.csv", to_csv(frame))
            names.append(f"{name}.csv")
    if len(tables.curves) and find_spec("matplotlib") is None:
        remarks = [f"no plot: matplotlib is missing. Get it with: {install('so-clip[report]')}"]
    elif len(tables.curves):
        remarks = write_plot(tables.curves, folder)
        names += [f"{NAME}.svg", f"{NAME}.png"]
    document = {name: _records(frame) for name, frame in frames.items()}
    atomic.write_json(folder / "rescore.json", document | {"left_out": list(tables.left_out)})
    return [*names, "rescore.json"], remarks


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the lines of a frame as JSON values, None for a missing number."""
    records: list[dict[str, Any]] = (
        frame.astype(object).where(frame.notna(), None).to_dict("records")
    )
    return records


def _screen_frames(tables: Tables) -> Iterator[tuple[str, pd.DataFrame, int]]:
    """Yield the caption, the cells as texts, and the number of columns of text."""
    scores, votes, curves = tables.scores, tables.votes, tables.curves
    several = (scores["test_set"] != scores["dataset"]).any()
    place = ["run", "test_set"] if several else ["run"]
    frame = _named(scores, [*place, "model"])
    frame["T (images)"] = [
        MISSING if pd.isna(temperature) else f"{temperature:.3f} ({images})"
        for temperature, images in zip(scores["temperature"], scores["calibrated_on"], strict=True)
    ]
    yield SCORES, frame.assign(**_cells(scores, _SCORE_COLUMNS)), len(place) + 1
    if len(votes):
        frame = _named(votes, [*place, "seed"]).rename(
            columns={"run": "first run", "seed": "seeds"}
        )
        yield VOTES, frame.assign(**_cells(votes, _VOTE_COLUMNS)), len(place) + 1
    if len(curves):
        heads = ["folder", *place, "space"]
        wide = curves.pivot(index=heads, columns="weight", values="accuracy_percent").reset_index()
        weights = {f"{weight:g}": (weight, _PERCENT) for weight in wide.columns[len(heads) :]}
        yield CURVES, _named(wide, heads[1:]).assign(**_cells(wide, weights)), len(heads) - 1


def _named(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    return frame[columns].rename(columns={"test_set": "test set"})


def _cells(frame: pd.DataFrame, columns: Mapping[str, tuple[Any, str]]) -> dict[str, list[str]]:
    """Return the texts of some columns of numbers, by their titles."""
    return {
        title: [MISSING if pd.isna(value) else form.format(value) for value in frame[name]]
        for title, (name, form) in columns.items()
    }
