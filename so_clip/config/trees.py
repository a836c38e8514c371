"""The main configurations under conf/: one for runs on images, one for runs on sentences."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from so_clip.config import sentence_settings, settings
from so_clip.data.cards.card import known_cards
from so_clip.data.sentences.card import known_sentence_cards
from so_clip.system.commands import SENTENCES as SENTENCES_WORD
from so_clip.system.paths import CONF_DIR

CONFIG_NAME = "config"


@dataclass(frozen=True)
class ConfigTree:
    """The configuration of one kind of run: a folder with a main file and groups.

    Attributes:
        folder: holds the main file. Groups that are not in it are found in conf/.
        options: the name of the declared options in the defaults list of the main file.
        declared: returns these options with their defaults.
        help: the command that lists all options.
        name: of the main file, without .yaml.
        cards: returns the names of the datasets, with those in a folder of the user's own cards.
        about: what the datasets hold, for messages.
        words: the first words of a command that starts such a run.
    """

    folder: Path
    options: str
    declared: Callable[[], dict[str, Any]]
    help: str
    name: str = CONFIG_NAME
    cards: Callable[[Path | None], list[str]] = known_cards
    about: str = "images"
    words: tuple[str, ...] = ()


RUNS = ConfigTree(CONF_DIR, "options", settings.default_options, "python -m so_clip --help options")
SENTENCES = ConfigTree(
    CONF_DIR,
    "sentence_options",
    sentence_settings.default_options,
    "python -m so_clip sentences --help options",
    name=SENTENCES_WORD,
    cards=known_sentence_cards,
    about="sentences",
    words=(SENTENCES_WORD,),
)


def other_kind(tree: ConfigTree) -> ConfigTree:
    """Return the other kind of runs."""
    return RUNS if tree is SENTENCES else SENTENCES


def declares(tree: ConfigTree, key: str) -> bool:
    """Return whether a kind of runs has an option, such as "augment.flip", or a group."""
    options: Any = tree.declared()
    for part in key.split("."):
        if not isinstance(options, Mapping) or part not in options:
            return False
        options = options[part]
    return True
