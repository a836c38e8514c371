"""`python -m so_clip draw`: print which images a few-shot draw picks, from the split file alone."""

import csv
import json
import sys

from so_clip.cli.guard import guarded
from so_clip.config.compose import compose
from so_clip.config.settings import from_config
from so_clip.data.base_to_new import BASE_TO_NEW
from so_clip.data.cards.card import USER_LAYOUTS
from so_clip.data.examples import SPLITS
from so_clip.data.fewshot import draw_few_shot
from so_clip.data.find import Dataset, find_dataset

USAGE = """\
Print the few-shot draw of a dataset as one JSON document, the content of a run's fewshot.json:
dataset, shots, seed, split_protocol, the lists train and val of [path, label], and their sha256.
Only the split file is read; images are not needed (ImageNet's folders are its split file).

  python -m so_clip draw dataset=dtd shots=4 seed=1 split_protocol=coop data_root=data

  dataset         a dataset with a card: python -m so_clip --help dataset lists them
  shots           train images per class; val gets min(4, shots)
  seed            the published draws are those of seeds 1, 2 and 3
  split_protocol  clip_lora (val first, then train; SO's too) | coop (train, then val)
  protocol        all | base_to_new (the first half of the classes)
  imbalance       alpha of a Dirichlet that shares the train images out unevenly | null
  data_root       the folder with the datasets, or with split files
  dataset.split_file   read this split file instead
  dataset=folder, dataset=csv   your own images, with all of their options

  --split   print all lists instead: CSV with path, label and split, as dataset=csv reads it

Options that are left out have the values of `python -m so_clip`."""
SPLIT = "--split"


def main() -> int:
    """Run the command line of `python -m so_clip draw`; return the process's exit code."""
    return guarded(_draw)


def _draw(arguments: list[str]) -> None:
    if "--help" in arguments or "-h" in arguments:
        print(USAGE)
        return
    settings = from_config(compose([each for each in arguments if each != SPLIT]))
    where = settings.data_root, settings.split_file, settings.own
    found = find_dataset(settings.dataset, *where, trains=SPLIT not in arguments)
    if SPLIT in arguments:
        _print_split(found)
        return
    splits = found.splits
    how = settings.shots, settings.seed, settings.split_protocol, settings.imbalance
    few = draw_few_shot(splits, *how)
    if settings.protocol == BASE_TO_NEW:
        few = few.of_base_classes(len(splits.class_names))
    print(json.dumps(few.as_json()))


def _print_split(found: Dataset) -> None:
    names = found.splits.class_names
    own = found.card.layout in USER_LAYOUTS
    labels = found.card.class_folders if own else names
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(["path", "label", "split"])
    for split in SPLITS:
        for path, label in getattr(found.splits, split):
            rows.writerow([path, labels[label], split])


if __name__ == "__main__":
    sys.exit(main())
