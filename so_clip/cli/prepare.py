"""`python -m so_clip prepare`: download or unpack datasets into the layout that runs read."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from so_clip.checks import path
from so_clip.cli.arguments import Words
from so_clip.cli.words import help_of, parsed
from so_clip.errors import InputError, RunFailed, say, show
from so_clip.prepare.options import PrepareOptions

if TYPE_CHECKING:
    from so_clip.data.cards.card import DatasetCard
    from so_clip.data.sentences.card import SentenceCard

    Card = DatasetCard | SentenceCard

ALL = "all"
OFFLINE = "--offline-from"
HELP = f"""Download datasets into the layout that runs read (CoOp's).

The sources on a dataset's card are tried in order. Repeat the command at any time: finished files
are kept, and interrupted downloads are resumed.

\b
  python -m so_clip prepare dataset=eurosat data_root=data
  python -m so_clip prepare dataset=eurosat,dtd data_root=data
  python -m so_clip prepare dataset=all data_root=data
  python -m so_clip prepare dataset=rte data_root=data
  python -m so_clip prepare dataset=sun397 data_root=data --offline-from ~/Downloads
  python -m so_clip prepare dataset=imagenet data_root=data imagenet_dir=/datasets/ILSVRC2012

{help_of(PrepareOptions, "offline_from")}

Downloads are compared with their published checksums, and images with the split file. rte, wnli,
mrpc, cola and sst2 are datasets of sentences; `all` leaves them out.

\b
Parquet sets and videos (UCF101) need: pip install 'so-clip[prepare]'.

Exit codes: 0 all datasets are there, 1 a dataset is not, 2 the input cannot be used."""


def main(
    words: Words = None,
    offline_from: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="A folder of archives with their published names, a folder with the unpacked "
            "images, or one archive with any name. Nothing is downloaded.",
        ),
    ] = None,
) -> None:
    """Prepare the datasets; see HELP."""
    offline = None if offline_from is None else path(OFFLINE, offline_from)
    if offline is not None and not offline.exists():
        raise InputError(f"{OFFLINE} {offline}: there is no such folder or archive.")
    options = parsed(PrepareOptions, words or [], "prepare", offline_from=offline)
    cards = _cards(options)
    if len(cards) > 1 and offline is not None and offline.is_file():
        raise InputError(
            f"{OFFLINE} {offline}: is one file, which cannot hold {len(cards)} datasets. Name "
            "the dataset, or give a folder."
        )
    layouts = [getattr(card, "layout", "") for card in cards]  # cards of sentences have none
    if options.imagenet_dir and "imagenet" not in layouts:
        raise InputError(
            f"imagenet_dir={options.imagenet_dir}: is for dataset=imagenet. Leave it out."
        )
    failures = []
    for card in cards:
        try:
            _prepare(card, options)
        except (InputError, RunFailed) as error:
            if len(cards) == 1:
                raise
            _say(card, str(error))
            failures.append(card.name)
    if failures:
        raise RunFailed(f"{len(failures)} of {len(cards)} not there: {', '.join(failures)}.")


def _prepare(card: "Card", options: PrepareOptions) -> None:
    from so_clip.data.cards.card import DatasetCard
    from so_clip.prepare.dataset import prepare
    from so_clip.prepare.sentences import prepare_sentences

    tell = partial(_say, card)
    if isinstance(card, DatasetCard):
        state = prepare(card, options, tell)
    else:
        state = prepare_sentences(card, options, tell)
    show(f"{card.name}: {state}")


def _say(card: "Card", text: str) -> None:
    say(f"{card.name}: {text}")


def _cards(options: PrepareOptions) -> list["Card"]:
    """Return the cards of the chosen datasets.

    `all` omits datasets that come with a package, ImageNet if there is no copy to link, and
    datasets of sentences.
    """
    from so_clip.data.cards.card import card_names, load_card
    from so_clip.data.lists.splits import refuse_misplaced
    from so_clip.data.sentences.card import (
        image_card_names,
        is_sentence_card,
        load_sentence_card,
    )
    from so_clip.system.paths import CARDS_DIR

    cards_dir = options.cards_dir or CARDS_DIR
    if not options.dataset:
        known = ", ".join(card_names(cards_dir))
        raise InputError(f"dataset is missing: give dataset=NAME or dataset={ALL}. Known: {known}.")
    if options.dataset == ALL:
        cards = [load_card(name, cards_dir) for name in image_card_names(cards_dir)]
        return [card for card in cards if _belongs_to_all(card, options)]
    chosen: list[Card] = []
    for name in dict.fromkeys(options.dataset.split(",")):
        if is_sentence_card(name, options.cards_dir):
            chosen.append(load_sentence_card(name, options.cards_dir))
            continue
        card = load_card(name, cards_dir)
        refuse_misplaced(card, options.data_root)
        chosen.append(card)
    return chosen


def _belongs_to_all(card: "DatasetCard", options: PrepareOptions) -> bool:
    from so_clip.prepare.dataset import LAYOUTS

    folder: Path = options.data_root / card.folder
    if card.layout == "imagenet" and not (
        options.imagenet_dir or options.offline_from or folder.exists()
    ):
        _say(card, "left out; it is never downloaded: link your copy with imagenet_dir=FOLDER")
        return False
    return card.layout in LAYOUTS
