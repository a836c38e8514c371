"""`python -m so_clip prepare`: fetch datasets, or take them from archives, into CoOp's layout."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from so_clip.checks import not_negative, optional_path, path, whole
from so_clip.cli.guard import guarded
from so_clip.data.cards.card import DatasetCard, card_names, load_card
from so_clip.errors import InputError, RunFailed, nearest
from so_clip.prepare.dataset import LAYOUTS, prepare
from so_clip.prepare.download import Patience
from so_clip.prepare.options import Options
from so_clip.system.paths import CARDS_DIR

USAGE = """\
Fetch datasets into the layout that runs read (CoOp's), from the sources on their cards, in order,
until one works. Repeat it at will: what is there is kept, what broke off goes on.

  python -m so_clip prepare dataset=eurosat data_root=data
  python -m so_clip prepare dataset=eurosat,dtd data_root=data
  python -m so_clip prepare dataset=all data_root=data
  python -m so_clip prepare dataset=sun397 data_root=data --offline-from ~/Downloads
  python -m so_clip prepare dataset=imagenet data_root=data imagenet_dir=/datasets/ILSVRC2012

  dataset           a dataset with a card, several of them (a,b), or all (of ImageNet only a copy
                    that you have is linked)
  data_root         the folder for all datasets; default data
  --offline-from    a folder with archives that you have, under the names they are published by, or
                    one archive under any name; the network is then left alone
  imagenet_dir      your copy of ImageNet, with train/ and val/; it is linked, and never fetched
  repair            fetch anew what is there but damaged: true | false, the default
  keep_archives     leave downloads in data_root/.prepare when all is done; default false
  max_unpacked_gib  the most that one source may unpack to; default 200
  retries           how often a download that stalls is tried again; default 5
  retry_seconds     first wait before that, doubled every time; default 1
  timeout_seconds   how long a server may be silent; default 60
  cards_dir         another folder of cards

Downloads are checked by the checksums that are published, and images one by one against the split
file. Parquet sets and videos (UCF101) need: pip install 'so-clip[prepare]'.
Exit codes: 0 all there, 1 a dataset could not be had, 2 the input cannot be used."""
OFFLINE = "--offline-from"
ALL = "all"
DEFAULTS: dict[str, Any] = {
    "dataset": None,
    "data_root": "data",
    "imagenet_dir": None,
    "repair": False,
    "keep_archives": False,
    "max_unpacked_gib": 200,
    "retries": 5,
    "retry_seconds": 1,
    "timeout_seconds": 60,
    "cards_dir": None,
}


def main() -> int:
    """Run the command line of `python -m so_clip prepare`; return the process's exit code."""
    return guarded(_main)


def _main(arguments: list[str]) -> None:
    if "--help" in arguments or "-h" in arguments:
        print(USAGE)
        return
    values, offline_from = read_arguments(arguments)
    cards_dir = optional_path("cards_dir", values["cards_dir"]) or CARDS_DIR
    options = _options(values, offline_from)
    cards = _cards(values["dataset"], cards_dir, options)
    if len(cards) > 1 and offline_from is not None and offline_from.is_file():
        raise InputError(
            f"{OFFLINE} {offline_from}: is one file, which cannot hold {len(cards)} datasets. Name "
            "the dataset, or give a folder."
        )
    if len(cards) == 1:
        print(f"{cards[0].name}: {_prepare(cards[0], options)}", flush=True)
        return
    failures = [card.name for card in cards if not _prepared(card, options)]
    if failures:
        raise RunFailed(f"{len(failures)} of {len(cards)} not there: {', '.join(failures)}.")


def _prepared(card: DatasetCard, options: Options) -> bool:
    """Prepare one of several datasets; say what is wrong and tell whether it is there."""
    try:
        print(f"{card.name}: {_prepare(card, options)}", flush=True)
    except (InputError, RunFailed) as error:
        _say(card, str(error))
        return False
    return True


def _prepare(card: DatasetCard, options: Options) -> str:
    return prepare(card, options, partial(_say, card))


def _say(card: DatasetCard, text: str) -> None:
    print(f"so_clip: {card.name}: {text}", file=sys.stderr, flush=True)


def read_arguments(arguments: list[str]) -> tuple[dict[str, Any], Path | None]:
    """Return all options by name, and the value of --offline-from.

    Raises:
        InputError: an unknown flag or option, one without a value, or one given twice.
    """
    values, given, offline = dict(DEFAULTS), set(), None
    rest = iter(arguments)
    for argument in rest:
        key, equals, text = argument.partition("=")
        if key == OFFLINE:
            offline = path(OFFLINE, text if equals else next(rest, ""))
            if not offline.exists():
                raise InputError(f"{OFFLINE} {offline}: there is no such folder or archive.")
        elif argument.startswith("-"):
            raise InputError(
                f"{argument}: there is no such flag.{nearest(key, [OFFLINE])} Options are written "
                "OPTION=VALUE; `python -m so_clip prepare --help` lists them."
            )
        elif key not in DEFAULTS or not equals:
            raise InputError(
                f"{argument}: there is no such option.{nearest(key, DEFAULTS)} "
                "`python -m so_clip prepare --help` lists them all; they are written OPTION=VALUE."
            )
        elif key in given:
            raise InputError(f"{argument}: {key} is given twice. Give it once.")
        else:
            given.add(key)
            # Folders are taken as they are written; numbers and true or false are YAML's.
            plain = isinstance(DEFAULTS[key], (bool, int))
            values[key] = _value(key, text) if plain else text
    return values, offline


def _value(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{key}={text}: cannot be read as a value.") from error


def _options(values: dict[str, Any], offline_from: Path | None) -> Options:
    for key in ("repair", "keep_archives"):
        if not isinstance(values[key], bool):
            raise InputError(f"{key}={values[key]}: must be true or false.")
    for key in ("max_unpacked_gib", "timeout_seconds"):
        if not_negative(key, values[key]) == 0:
            raise InputError(f"{key}={values[key]}: must be above 0.")
    return Options(
        data_root=path("data_root", values["data_root"]),
        offline_from=offline_from,
        imagenet_dir=optional_path("imagenet_dir", values["imagenet_dir"]),
        repair=values["repair"],
        keep_archives=values["keep_archives"],
        max_unpacked_gib=float(values["max_unpacked_gib"]),
        patience=Patience(
            retries=whole("retries", values["retries"], 0),
            retry_seconds=not_negative("retry_seconds", values["retry_seconds"]),
            timeout_seconds=float(values["timeout_seconds"]),
        ),
    )


def _cards(names: str | None, cards_dir: Path, options: Options) -> list[DatasetCard]:
    """Return the cards that are asked for.

    `all` leaves out what comes with a package, and ImageNet where there is no copy to link.
    """
    if not names:
        known = ", ".join(card_names(cards_dir))
        raise InputError(f"dataset is missing: give dataset=NAME or dataset={ALL}. Known: {known}.")
    if names == ALL:
        every = [load_card(name, cards_dir) for name in card_names(cards_dir)]
        return [card for card in every if _is_one_of_all(card, options)]
    return [load_card(name, cards_dir) for name in dict.fromkeys(names.split(","))]


def _is_one_of_all(card: DatasetCard, options: Options) -> bool:
    copies = options.imagenet_dir, options.offline_from
    there = (options.data_root / card.folder).exists()
    if card.layout == "imagenet" and not (any(copies) or there):
        _say(card, "left out, as it is never fetched: link your copy with imagenet_dir=FOLDER")
        return False
    return card.layout in LAYOUTS


if __name__ == "__main__":
    sys.exit(main())
