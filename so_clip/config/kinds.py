"""The two kinds of runs, on images and on sentences: their groups, options and first words."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from so_clip.checks import path
from so_clip.config.compose import choices
from so_clip.config.sentence_settings import HEAD
from so_clip.config.trees import RUNS, SENTENCES, ConfigTree, other_kind
from so_clip.data.cards.card import card_names
from so_clip.data.plain_files import load_plain_yaml
from so_clip.data.sentences.card import is_sentence_card
from so_clip.errors import InputError
from so_clip.system.commands import command, override
from so_clip.system.safe_open import read_plain

# Classes of adapters that take any model with parts, not CLIP alone: their `for_sentences` is true.
SENTENCE_ADAPTERS = (
    "so_clip.methods.adalora.AdaLoRA",
    "so_clip.methods.entries.Entries",
    "so_clip.methods.head.Head",
    "so_clip.methods.peft_adapter.Peft",
    "so_clip.methods.relora.ReLoRA",
    "so_clip.methods.weights.Weights",
)
# Groups of both kinds.
_SHARED = {"schedule", "evaluation"}


def kind_of(words: Sequence[str]) -> tuple[ConfigTree, list[str]]:
    """Return the kind of run that the first word chooses, and the options.

    Args:
        words: of the command line, without flags. The first one may be `sentences` or the name of
            a dataset of sentences; `rte` means `sentences dataset=rte`.

    Raises:
        InputError: such a word is not the first one, or two datasets are named.
    """
    for word in words[1:]:
        if is_first_word(word, words):
            raise InputError(f"{word}: comes first: {command(word, '...')}")
    if not words or not is_first_word(words[0], words):
        return RUNS, list(words)
    name, *options = words
    if name == SENTENCES.name:
        return SENTENCES, options
    for word in options:
        if word.partition("=")[0].lstrip("+") in ("dataset", "dataset.name"):
            chosen = f"dataset={word.partition('=')[2]}"
            raise InputError(
                f"{name} {word}: both name a dataset. Give one of them: "
                f"{command(SENTENCES.name, chosen, '...')}"
            )
    return SENTENCES, [override("dataset", name), *options]


def is_first_word(word: str, words: Sequence[str] = ()) -> bool:
    """Return whether a word begins a run on sentences.

    Args:
        word: `sentences`, or perhaps the name of a dataset.
        words: all words; cards_dir=FOLDER among them adds the user's own datasets.
    """
    if word == SENTENCES.name:
        return True
    if not re.fullmatch(r"\w[\w-]*", word):
        return False
    folders = [text.partition("=")[2] for text in words if text.startswith("cards_dir=")]
    known = [path("cards_dir", folder.strip("'\"")) for folder in folders if folder]
    return any(is_sentence_card(word, folder) for folder in (None, *known))


def check_experiments(words: Sequence[str], tree: ConfigTree, config_dir: Path | None) -> None:
    """Raise InputError for an experiment of the other kind.

    Args:
        words: GROUP=CHOICE and OPTION=VALUE.
        tree: the kind of run.
        config_dir: the user's own configuration folder.
    """
    files = {file.stem: file for file in choices("experiment", config_dir)}
    for word in words:
        name, _, value = word.partition("=")
        if name.lstrip("+") != "experiment":
            continue
        for chosen in re.findall(r"[\w-]+", value):
            kind = kind_of_file(files[chosen]) if chosen in files else None
            if kind not in (None, tree):
                other = other_kind(tree)
                raise InputError(
                    f"experiment={chosen}: is about {other.about}, and this is a run on "
                    f"{tree.about}. Write "
                    f"{command(*other.words, override('experiment', chosen), '...')}"
                )


def check_images(config: DictConfig) -> None:
    """Refuse a dataset of sentences, or the method `head`, in a run on images.

    Args:
        config: as composed. A schedule in epochs cannot be resolved for such a dataset.
    """
    values: Any = OmegaConf.to_container(config, resolve=False)
    dataset, adapter = values.get("dataset"), values.get("adapter")
    name = dataset.get("name") if isinstance(dataset, dict) and "layout" not in dataset else None
    if isinstance(name, str) and name not in card_names():
        folder = values.get("cards_dir")
        own = path("cards_dir", folder) if isinstance(folder, str) and folder else None
        if is_sentence_card(name, own):
            words = [name] if is_sentence_card(name) else [*SENTENCES.words, f"dataset={name}"]
            raise InputError(
                f"dataset={name}: is a dataset of sentences, and this is a run on images. Write "
                f"{command(*words, '...')}, and for draw {command('draw', *words, '...')}"
            )
    if isinstance(adapter, dict) and adapter.get("name") == HEAD:
        raise InputError(
            f"adapter={HEAD}: trains the head of an encoder of sentences, and CLIP has none. "
            "Choose method=linear_probe, or a run on sentences."
        )


def kind_of_file(file: Path) -> ConfigTree | None:
    """Return the kind of run that a choice belongs to; None if it fits both kinds.

    Args:
        file: GROUP/CHOICE.yaml in conf/ or in the user's own configuration folder.
    """
    group, name = file.parent.name, file.stem
    if group in ("by_optimizer", "by_adapter"):  # named EXPERIMENT_CHOICE
        owners = [
            owner for owner in file.parents[1].glob("*.yaml") if name.startswith(f"{owner.stem}_")
        ]
        return kind_of_file(max(owners, key=lambda owner: len(owner.stem))) if owners else None
    if group in ("backbone", "model"):
        return RUNS if group == "backbone" else SENTENCES
    if group == "schedule":
        return SENTENCES if name == SENTENCES.name else RUNS
    if group == "adapter":
        return _kind_of_adapter(file)
    if group == "method":
        adapter = _overridden(_content(file)).get("adapter")
        files = {known.stem: known for known in choices("adapter", file.parent.parent)}
        return _kind_of_adapter(files[adapter]) if adapter in files else None
    if group.startswith("by_"):  # EXPERIMENT_CHOICE.yaml, in a folder below the experiments
        files = {known.stem: known for known in file.parent.parent.glob("*.yaml")}
        whole = [known for known in files if name.startswith(f"{known}_")]
        return _kind_of_experiment(files[max(whole, key=len)]) if whole else None
    return _kind_of_experiment(file) if group == "experiment" else None


def _kind_of_adapter(file: Path) -> ConfigTree | None:
    if file.stem == HEAD:
        return SENTENCES
    content = _content(file)
    if "_target_" in content:
        return None if content["_target_"] in SENTENCE_ADAPTERS else RUNS
    parents = [name for name in content.get("defaults") or () if isinstance(name, str)]
    return _kind_of_adapter(file.with_name(f"{parents[0]}.yaml")) if parents else None


def _kind_of_experiment(file: Path) -> ConfigTree | None:
    """Return the kind whose groups or options an experiment names, if the other has none such."""
    content = _content(file)
    swept = ((content.get("hydra") or {}).get("sweeper") or {}).get("params") or {}
    chosen = {**_overridden(content), **swept}
    names = {str(name).partition(".")[0] for name in (*chosen, *content)}
    for kind, other in ((RUNS, SENTENCES), (SENTENCES, RUNS)):
        if names & (kind.declared().keys() - other.declared().keys() - _SHARED):
            return kind
    datasets = re.findall(r"\w+", str(chosen.get("dataset", "")))
    if datasets:
        return SENTENCES if all(map(is_sentence_card, datasets)) else RUNS
    return None


def _overridden(content: dict[str, Any]) -> dict[str, Any]:
    """Return the choices of groups that a file's defaults list overrides."""
    lines = [line for line in content.get("defaults") or () if isinstance(line, dict)]
    return {
        str(key).removeprefix("override ").lstrip("/"): value
        for line in lines
        for key, value in line.items()
    }


def _content(file: Path) -> dict[str, Any]:
    """Return a configuration file's content; {} if Hydra will say what is wrong with it."""
    try:
        content = load_plain_yaml(read_plain(file))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}
