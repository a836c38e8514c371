"""The tables on a terminal, with the library rich; in a pipe or a file as Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from so_clip import escape
from so_clip.errors import show
from so_clip.report.formats.screen import fitting
from so_clip.report.formats.text import MISSING, frame_to_markdown
from so_clip.rescore.tables import Tables
from so_clip.results.logit_scores import BIN_COUNTS

SCORES = (
    "Scores from kept logits. T: the temperature, and in brackets the number of drawn validation "
    "images of the run that it is fitted on; a line without T has the model's own probabilities. "
    "NLL: negative log-likelihood. Brier: from 0 to 2. ECE: expected calibration error in %, with "
    "the number of bins"
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


# On a narrow terminal a run keeps at least its last characters, the fingerprint, behind an "…".
_NAME_CELLS = 13
# Blanks between two columns, and beside the table.
_GAP, _EDGES = 3, 2


def show_tables(tables: Tables) -> None:
    """Print the tables: for people on a terminal, as Markdown in a pipe or a file."""
    console = Console(highlight=False)
    for caption, frame, texts in _screen_frames(tables):
        if not console.is_terminal:
            show(frame_to_markdown(frame, f"{caption}.", texts))
            continue
        console.print(Text(f"{caption}.", "bold"))
        shown = frame.map(escape.line)
        width = console.width - _EDGES
        for numbers in _fitting(shown, texts, width):
            console.print(_grid(shown[[*frame.columns[:texts], *numbers]], texts, width))


def _grid(frame: pd.DataFrame, texts: int, width: int) -> Table:
    """Return a table with a line between two runs. Each run is named once, and cut if it is long.

    Args:
        frame: the cells; the first column names runs.
        texts: the number of columns of text.
        width: cells of the terminal for the columns.
    """
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for index, name in enumerate(frame.columns):
        grid.add_column(Text(name), justify="left" if index < texts else "right", no_wrap=True)
    others = sum(_GAP + _width(frame, name) for name in frame.columns[1:])
    room = max(_NAME_CELLS, width - others)
    before = None
    for run, *cells in frame.itertuples(index=False):
        if before not in (None, run):
            grid.add_section()
        name = run if cell_len(run) <= room else f"…{run[1 - room :]}"
        grid.add_row(*map(Text, ["" if run == before else name, *cells]))
        before = run
    return grid


def _fitting(frame: pd.DataFrame, texts: int, width: int) -> Iterator[list[str]]:
    """Return the columns of numbers in groups that fit beside the texts."""
    room = width - _NAME_CELLS - sum(_GAP + _width(frame, name) for name in frame.columns[1:texts])
    numbers = [*frame.columns[texts:]]
    return fitting(numbers, [_GAP + _width(frame, name) for name in numbers], room)


def _width(frame: pd.DataFrame, name: str) -> int:
    return max(map(cell_len, [name, *frame[name]]))


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
