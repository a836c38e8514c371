"""The data of a run on sentences: the drawn training examples and the tested ones."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from so_clip.data.sentences.card import SentenceCard, load_sentence_card
from so_clip.data.sentences.choice import SentenceChoice
from so_clip.data.sentences.draw import class_counts, draw_rows, leftover_rows
from so_clip.data.sentences.find import find_sentences, read_sentences
from so_clip.data.sentences.pairs import Pair, contents_sha256
from so_clip.errors import note

__all__ = ["LEFTOVER", "TEST", "Pair", "SentenceData", "gather_sentences"]

# What a run is tested on: the validation split, which is GLUE's public test, or training examples.
TEST, LEFTOVER = "test", "leftover"


@dataclass(frozen=True)
class SentenceData:
    """The data of one run on sentences.

    Attributes:
        card: the dataset.
        train: the drawn training examples, in the order of the draw.
        test: the tested examples, in the file's order.
        contents_sha256: of all sentences and labels of both splits, from files of any format.
        tested_on: "test" for the validation split, or "leftover" for left-over training examples.
        choice: dataset and draw.
        files: the files that were read.
    """

    card: SentenceCard
    train: tuple[Pair, ...]
    test: tuple[Pair, ...]
    contents_sha256: str
    tested_on: str
    choice: SentenceChoice
    files: tuple[Path, ...]

    def draw_json(self) -> dict[str, Any]:
        """Return the draw as the document of `fewshot.json`.

        `rows` are the drawn rows of the training file, counted from 0, and `labels` their labels.
        `sha256` is that of the canonical JSON of both: keys sorted, no blanks. Left-over rows that
        are tested are `test_rows`.
        """
        drawn = {
            "labels": [pair.label for pair in self.train],
            "rows": [pair.row for pair in self.train],
        }
        text = json.dumps(drawn, sort_keys=True, separators=(",", ":"))
        tested = {"test_rows": [pair.row for pair in self.test]}
        return {
            "dataset": self.card.name,
            "shots": self.choice.shots,
            "subset": self.choice.subset,
            "seed": self.choice.seed,
            **drawn,
            "counts": class_counts(drawn["labels"], len(self.card.label_names)),
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            **(tested if self.tested_on == LEFTOVER else {}),
        }


def gather_sentences(choice: SentenceChoice) -> SentenceData:
    """Read a dataset of sentences and draw the training examples.

    Raises:
        InputError: no such dataset, missing or damaged files, or a draw that is not possible.
    """
    card = load_sentence_card(choice.dataset, choice.cards_dir)
    files = find_sentences(card, choice.data_root)
    train, validation = read_sentences(files, card)
    _note_sizes(card, len(train), len(validation))
    rows = draw_rows(
        [pair.label for pair in train],
        card.label_names,
        shots=choice.shots,
        subset=choice.subset,
        seed=choice.seed,
    )
    test, tested_on = validation, TEST
    if choice.split == LEFTOVER:
        left = leftover_rows(len(train), rows, len(validation))
        test, tested_on = [train[row] for row in left], LEFTOVER
    return SentenceData(
        card=card,
        train=tuple(train[row] for row in rows),
        test=tuple(test),
        contents_sha256=contents_sha256(train, validation),
        tested_on=tested_on,
        choice=choice,
        files=tuple(dict.fromkeys((*files.train, *files.validation))),
    )


def _note_sizes(card: SentenceCard, train: int, validation: int) -> None:
    """Print the numbers of examples if they are not the published ones."""
    published = card.sizes
    if published and (train, validation) != (published.train, published.validation):
        note(
            f"{card.title}: the files have {train} training and {validation} validation examples, "
            f"but {published.train} and {published.validation} were published. Draws and accuracy "
            "are about these files."
        )
