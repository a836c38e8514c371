"""`python -m so_clip doctor`: the state of every dataset, its faults, and what repairs them."""

import json
from typing import TYPE_CHECKING, Any, Literal

from so_clip.checks import OptionalPathOption, Options, PathOption, option
from so_clip.cli.arguments import AsJson, Words
from so_clip.cli.words import help_of, is_run_option, parsed
from so_clip.errors import InputError, show
from so_clip.system.commands import override

if TYPE_CHECKING:
    from so_clip.prepare.diagnosis import Diagnosis, Place

ALL = "all"


class DoctorOptions(Options):
    """Which datasets to examine, and how many images to decode."""

    data_root: PathOption = option("data", "the folder of all datasets")
    dataset: str = option(ALL, "one, several (a,b) or all; absent datasets are no fault of all")
    check: Literal["sampled", "all"] = option("sampled", "decode a sample of the images, or all")
    samples: int = option(500, "how many images per dataset a sample has", ge=0)
    cards_dir: OptionalPathOption = option(None, "a folder of your own dataset cards; all is these")


HELP = f"""Examine the datasets in a data root. Nothing is written.

Every image in a split file must exist. Images that look cut short, and a sample of the others, are
decoded. Folder layouts of CoOp (also used by Tip-Adapter and PromptSRC) and torchvision are found
and used in place.

\b
  python -m so_clip doctor data_root=data
  python -m so_clip doctor data_root=data dataset=eurosat check=all

{help_of(DoctorOptions)}

dataset=rte, wnli, mrpc, cola or sst2 examines a dataset of sentences; `all` leaves these out.
dataset=folder and dataset=csv examine your own images in data_root. The options of runs are
allowed, and the next command that is printed repeats them.

Exit codes: 0 all datasets are whole, 1 a dataset is not, 2 the input cannot be used."""


def main(
    words: Words = None,
    as_json: AsJson = False,
) -> None:
    """Examine the datasets; see HELP."""
    from so_clip.prepare.report import conclusion, report

    words = words or []
    run_words = [word for word in words if is_run_option(word, DoctorOptions)]
    options = parsed(DoctorOptions, [word for word in words if word not in run_words], "doctor")
    diagnoses, run_options = _diagnoses(options, run_words)
    place, all_cards = _place(options), options.dataset == ALL
    if as_json:
        documents = [found.as_json() for found in diagnoses]
        show(json.dumps(documents, indent=2, ensure_ascii=False))
    else:
        show("\n".join(report(diagnoses, place, all_cards)))
    last_line = conclusion(diagnoses, place, all_cards, run_options)
    if not as_json:
        show(last_line)


def _place(options: DoctorOptions) -> "Place":
    from so_clip.prepare.diagnosis import Place

    return Place(options.data_root, options.cards_dir)


def _diagnoses(options: DoctorOptions, run_words: list[str]) -> tuple[list["Diagnosis"], list[str]]:
    """Return the diagnoses, and the options of runs that the next command repeats."""
    from so_clip.data.cards.card import USER_LAYOUTS, load_card
    from so_clip.data.sentences.card import (
        image_card_names,
        is_sentence_card,
        load_sentence_card,
    )
    from so_clip.prepare.examine import examine
    from so_clip.prepare.sentences import examine_sentences
    from so_clip.system.paths import CARDS_DIR

    decode = None if options.check == "all" else options.samples
    root, cards_dir = options.data_root, options.cards_dir or CARDS_DIR
    _check_run_words(run_words)
    has_user_options = any(word.startswith("dataset.") for word in run_words)
    if has_user_options or options.dataset in USER_LAYOUTS:
        run_words = [override("dataset", options.dataset), *run_words]
        return [_user_diagnosis(options, run_words, decode)], run_words
    if not root.is_dir():
        raise InputError(f"data_root={root}: there is no such folder. Give the one with datasets.")
    if options.dataset != ALL:
        names = list(dict.fromkeys(options.dataset.split(",")))
    elif not (names := image_card_names(cards_dir)):
        raise InputError(f"cards_dir={cards_dir}: holds no card of a dataset (NAME.yaml).")
    place = _place(options)
    return [
        examine_sentences(load_sentence_card(name, options.cards_dir), place)
        if is_sentence_card(name, options.cards_dir)
        else examine(load_card(name, cards_dir), place, decode)
        for name in names
    ], run_words


def _check_run_words(words: list[str]) -> None:
    """Raise InputError for an option that no run accepts. The next command would repeat it.

    The options of a dataset belong to its diagnosis, so they are left out here.
    """
    from so_clip.config.compose import compose
    from so_clip.config.parse import from_config

    others = [word for word in words if not word.lstrip("+~").startswith("dataset.")]
    if others:
        from_config(compose(others))


def _user_diagnosis(options: DoctorOptions, words: list[str], decode: int | None) -> "Diagnosis":
    """Examine the user's own images, with the options of runs."""
    from omegaconf import OmegaConf

    from so_clip.config.compose import compose
    from so_clip.config.parse import resolving
    from so_clip.config.user_data import dataset_choice
    from so_clip.prepare.examine import examine_user_images

    composed = compose(words)
    with resolving():
        values: Any = OmegaConf.to_container(composed["dataset"], resolve=True)
    choice = dataset_choice(values, options.data_root)
    if choice.user_data is None:
        first = next(word for word in words if word.startswith("dataset."))
        raise InputError(f"{first}: is an option of runs. Leave it out.")
    return examine_user_images(choice.dataset, choice.user_data, decode)
