"""The words of a report for each kind of task: images, or sentences."""

from dataclasses import dataclass

import pandas as pd

from so_clip.results.run_files import TASK
from so_clip.results.scores import SENTENCES


@dataclass(frozen=True)
class Wording:
    """Words for the runs of one task.

    Attributes:
        task: the value of `task` in the runs.
        item: what a model classifies.
        column: of predictions.csv, with the item's path or its row in the dataset's file.
        shot, shots: what counts the training items, and its heading in a table.
        training: the axis of a plot over shots.
    """

    task: str
    item: str
    column: str
    shot: str
    shots: str
    training: str

    @property
    def items(self) -> str:
        """The plural of `item`."""
        return f"{self.item}s"

    def in_shots(self, shots: int) -> str:
        """Return a number of shots in words: "4 shots", "32 examples"."""
        return f"{shots} {self.shot}{'' if shots == 1 else 's'}"


IMAGE_WORDS = Wording("images", "image", "path", "shot", "shots", "training images per class")
SENTENCE_WORDS = Wording(
    SENTENCES, "example", "row", "example", "examples", "training examples in all"
)


def wording_of(runs: pd.DataFrame) -> Wording:
    """Return the words for runs of one task; runs on images do not name it."""
    is_sentences = TASK in runs and (runs[TASK] == SENTENCES).any()
    return SENTENCE_WORDS if is_sentences else IMAGE_WORDS


def by_task(runs: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the runs on images and the runs on sentences, without empty parts."""
    if TASK not in runs:
        return [runs]
    on_sentences = runs[TASK] == SENTENCES
    return [part for part in (runs[~on_sentences], runs[on_sentences]) if len(part)]
