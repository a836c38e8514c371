"""`python -m so_clip draw`: print the few-shot images or sentences of a run."""

import csv
import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from so_clip.data.find import Dataset

from so_clip.cli.arguments import Words
from so_clip.cli.run_checks import check_words
from so_clip.errors import InputError, show
from so_clip.escape import csv_row

HELP = """Print the few-shot images or sentences of a run as JSON, the content of fewshot.json.

It has dataset, shots, seed, split_protocol, the lists train and val of [path, label], and their
SHA-256. Only the split file is read, no images (for ImageNet, the class folders are listed).

\b
  python -m so_clip draw dataset=dtd shots=4 seed=1 split_protocol=coop data_root=data
  python -m so_clip draw rte shots=32 subset=official seed=42 data_root=data

For a dataset of sentences, the first word is its name. The document has the drawn rows of the
training file, counted from 0, their labels, and the SHA-256 of both.

\b
Options are those of runs, with the same defaults. These change the draw:
  dataset             a dataset with a card, or folder or csv for your own images
  shots               training images per class; val gets min(4, shots)
  seed                the published draws have the seeds 1, 2 and 3
  split_protocol      clip_lora (val first, then train; also SO's) | coop (train, then val)
  protocol            all | base_to_new (the first half of the classes)
  imbalance           the alpha of a Dirichlet distribution of images over classes | null
  tasks, episodes.*   sampled tasks: the document has the classes and images of each in draws
  subset              of sentences: balanced (as many of each class) | official (any examples)
  split               of sentences: validation | leftover (test on examples that are not drawn)
  data_root           the folder of all datasets, or of split files
  cards_dir           a folder of your own dataset cards
  dataset.split_file  another split file"""


def main(
    words: Words = None,
    split: Annotated[
        bool,
        typer.Option(
            "--split", help="Print all lists as CSV instead: path, label, split, as dataset=csv."
        ),
    ] = False,
) -> None:
    """Print the few-shot images or sentences; see HELP."""
    from so_clip.config.compose import compose
    from so_clip.config.kinds import kind_of
    from so_clip.config.parse import from_config
    from so_clip.config.sentence_parse import sentence_settings
    from so_clip.config.trees import SENTENCES
    from so_clip.data.find import find_dataset
    from so_clip.data.run_data import draw
    from so_clip.data.sentences.read import gather_sentences

    tree, words = kind_of(words or [])
    check_words(words)
    if tree is SENTENCES:
        if split:
            raise InputError("--split: lists images, and this dataset has none. Leave it out.")
        data = gather_sentences(sentence_settings(compose(words, tree=tree)).data)
        show(_json_lines(data.draw_json()))
        return
    settings = from_config(compose(words))
    choice = settings.data
    found = find_dataset(
        choice.dataset,
        choice.data_root,
        choice.split_file,
        user=choice.user_data,
        trains=not split,
        cards_dir=choice.cards_dir,
    )
    if split:
        _print_split(found)
        return
    if choice.tasks:
        from so_clip.tasks.draws import draw_tasks, draws_json

        tasks = draw_tasks(settings, found.splits)
        show(_json_lines(draws_json(settings, tasks, whole=True)))
        return
    show(_json_lines(draw(found.splits, choice).as_json()))


def _json_lines(document: Mapping[str, Any]) -> str:
    """Return a JSON object with one line for each key, and for each item of a list of lists."""
    lines = []
    for key, value in document.items():
        text = json.dumps(value)
        if isinstance(value, list) and any(isinstance(item, list | dict) for item in value):
            items = ",\n    ".join(json.dumps(item) for item in value)
            text = f"[\n    {items}\n  ]"
        lines.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}"


def _print_split(found: "Dataset") -> None:
    from so_clip.data.cards.card import USER_LAYOUTS
    from so_clip.data.examples import SPLITS

    is_user_data = found.card.layout in USER_LAYOUTS
    labels = found.card.class_folders if is_user_data else found.splits.class_names
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["path", "label", "split"])
    for split in SPLITS:
        for path, label in getattr(found.splits, split):
            rows.writerow(csv_row([path, labels[label], split]))
    show(text.getvalue().removesuffix("\n"))
