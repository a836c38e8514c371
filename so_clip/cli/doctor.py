"""`python -m so_clip doctor`: the state of every dataset, its faults, and what repairs them."""

import json
from typing import TYPE_CHECKING, Any, Literal

from so_clip.checks import OptionalPathOption, Options, PathOption, option
from so_clip.cli.arguments import AsJson, Words
from so_clip.cli.words import help_of, parsed
from so_clip.errors import InputError

if TYPE_CHECKING:
    from so_clip.prepare.examine import Diagnosis

ALL = "all"


class DoctorOptions(Options):
    """Which datasets to examine, and how many images to decode."""

    data_root: PathOption = option("data", "the folder of all datasets")
    dataset: str = option(ALL, "one, several (a,b) or all; absent datasets are no fault of all")
    check: Literal["sampled", "all"] = option("sampled", "decode a sample of the images, or all")
    samples: int = option(500, "how many images per dataset a sample has", ge=0)
    cards_dir: OptionalPathOption = option(None, "another folder of dataset cards")


HELP = f"""Examine the datasets in a data root. Nothing is written.

Every image in a split file must exist. Images that look cut short, and a sample of the others, are
decoded. Folder layouts of CoOp (also used by Tip-Adapter and PromptSRC) and torchvision are found
and used in place.

\b
  python -m so_clip doctor data_root=data
  python -m so_clip doctor data_root=data dataset=eurosat check=all

{help_of(DoctorOptions)}

dataset=folder and dataset=csv examine your own images in data_root, with the options of runs.

Exit codes: 0 all datasets are whole, 1 a dataset is not, 2 the input cannot be used."""


def main(
    words: Words = None,
    as_json: AsJson = False,
) -> None:
    """Examine the datasets; see HELP."""
    from so_clip.prepare.report import conclusion, report

    words = words or []
    data_words = [word for word in words if word.startswith("dataset.")]
    options = parsed(DoctorOptions, [word for word in words if word not in data_words], "doctor")
    diagnoses, user_options = _diagnoses(options, data_words)
    root, all_cards = options.data_root, options.dataset == ALL
    if as_json:
        documents = [found.as_json() for found in diagnoses]
        print(json.dumps(documents, indent=2, ensure_ascii=False))
    else:
        print("\n".join(report(diagnoses, root, all_cards)))
    last_line = conclusion(diagnoses, root, all_cards, user_options)
    if not as_json:
        print(last_line)


def _diagnoses(
    options: DoctorOptions, data_words: list[str]
) -> tuple[list["Diagnosis"], list[str]]:
    """Return the diagnoses, and the options of the user's own images if there are any."""
    from so_clip.data.cards.card import USER_LAYOUTS, card_names, load_card
    from so_clip.prepare.examine import examine
    from so_clip.system.paths import CARDS_DIR

    decode = None if options.check == "all" else options.samples
    root, cards_dir = options.data_root, options.cards_dir or CARDS_DIR
    if data_words or options.dataset in USER_LAYOUTS:
        user_options = [f"dataset={options.dataset}", *data_words]
        return [_user_diagnosis(options, user_options, decode)], user_options
    if not root.is_dir():
        raise InputError(f"data_root={root}: there is no such folder. Give the one with datasets.")
    names = card_names(cards_dir)
    if not names:
        raise InputError(f"cards_dir={cards_dir}: holds no card of a dataset (NAME.yaml).")
    if options.dataset != ALL:
        names = list(dict.fromkeys(options.dataset.split(",")))
    return [examine(card, root, decode) for card in [load_card(n, cards_dir) for n in names]], []


def _user_diagnosis(options: DoctorOptions, words: list[str], decode: int | None) -> "Diagnosis":
    """Examine the user's own images, with the options of runs."""
    from omegaconf import OmegaConf

    from so_clip.config.compose import compose
    from so_clip.config.user_data import dataset_choice
    from so_clip.prepare.examine import examine_user_images

    values: Any = OmegaConf.to_container(compose(words)["dataset"], resolve=True)
    choice = dataset_choice(values, options.data_root)
    if choice.user_data is None:
        raise InputError(f"{words[1]}: is an option of runs. Leave it out.")
    return examine_user_images(choice.dataset, choice.user_data, decode)
