"""Dataset cards: facts about a dataset, read from one YAML file and checked."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from so_clip.data.cards.card_file import LAYOUTS, PACKAGE_LAYOUT, TEST_LAYOUTS, CardFile, card_error
from so_clip.data.plain_files import load_plain_yaml
from so_clip.errors import InputError, nearest
from so_clip.system.commands import command, install, override
from so_clip.system.paths import CARDS_DIR
from so_clip.system.safe_open import MAX_YAML_BYTES, read_plain

__all__ = ["LAYOUTS", "PACKAGE_LAYOUT", "TEST_LAYOUTS", "USER_LAYOUTS", "DatasetCard"]

# Layouts of a user's own images. Their cards have no files: they are made from the folder.
USER_LAYOUTS = ("folder", "csv")
# Fields of a card that cannot change a result, or do not come from its file.
_WITHOUT_EFFECT = {
    *("title", "licence", "homepage", "citation", "sources"),
    *("template_files", "descriptions", "user_file", "user_sha256", "data_root"),
}


@dataclass(frozen=True)
class DatasetCard:
    """One dataset, as its YAML file describes it.

    Attributes:
        name: the name on the command line and of the file.
        title: the name for people.
        layout: how its files are read, one of `LAYOUTS`.
        folder: its folder below the data root, or in the package.
        image_dir: the folder of its images, below `folder`; "" for `folder` itself.
        sizes: full size: `classes`, and images in `train`, `val`, `test`.
        templates: the prompts `plain` and `specific`, each with one {} for the class name.
        licence, homepage, citation: for people.
        class_names: in label order. If there is a split file, the run takes its names instead.
        split_file: file name below `folder`, for layout split_file only.
        split_sha256: of the published split file, if known. It is never enforced: a user may cut
            a split file down to the available images, and the run records the hash of the file
            that it read. For images in a package, it is the hash of the drawn lists, and it is
            enforced.
        sources: where to get the images, one mapping each.
        class_folders: names of the class folders in label order (ImageNet's WordNet ids).
        classes_of: the card that has the same classes, or more. `class_folders` may select some
            of them. Names and templates come from that card.
        parent_labels: the labels of these classes in that dataset.
        package: the installed package with the images: its `module`, and what pip must `install`;
            for layout package_folders only. No data root is needed then.
        image_pixels: of one image, if all have the same size; forecasts use it.
        other_folders: folders of the same files in other code bases; "." is the data root.
        template_ensemble: more prompts, to be averaged (`templates.ensemble` in the file).
        template_files: the templates of a user's file, by the value of the run's `template`.
        descriptions: the prompts of each class from a user's file; they replace all templates.
        data_root: where a run looks for the dataset, for messages.
        user_file: the file of a card in a folder of the user's cards.
        user_sha256: of everything in that card that can change a result.
    """

    name: str
    title: str
    layout: str
    folder: str
    image_dir: str
    sizes: dict[str, int]
    templates: dict[str, str]
    licence: str
    homepage: str
    citation: str
    class_names: tuple[str, ...]
    split_file: str | None = None
    split_sha256: str | None = None
    sources: tuple[dict[str, Any], ...] = ()
    class_folders: tuple[str, ...] = ()
    classes_of: str | None = None
    parent_labels: tuple[int, ...] = ()
    package: dict[str, str] | None = None
    image_pixels: int | None = None
    other_folders: tuple[str, ...] = ()
    template_ensemble: tuple[str, ...] = ()
    template_files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    descriptions: Mapping[str, tuple[str, ...]] | None = None
    user_file: Path | None = None
    data_root: Path | None = None
    user_sha256: str = ""

    @property
    def template_sets(self) -> dict[str, tuple[str, ...]]:
        """The templates of each set by name. A class embedding is the mean over a set."""
        sets: dict[str, tuple[str, ...]] = {
            name: (template,) for name, template in self.templates.items()
        }
        sets |= {"ensemble": self.template_ensemble} if self.template_ensemble else {}
        return sets | dict(self.template_files)

    @property
    def test_only(self) -> bool:
        """Whether the dataset has no training images."""
        return self.layout in TEST_LAYOUTS

    @property
    def published(self) -> bool:
        """Whether others can get the dataset: its card has sources or the hash of its split."""
        return bool(self.sources or self.split_sha256)


def card_names(cards_dir: Path = CARDS_DIR) -> list[str]:
    """Return the names of all datasets that have a card, sorted."""
    return sorted(path.stem for path in cards_dir.glob("*.yaml"))


def known_cards(cards_dir: Path | None = None) -> list[str]:
    """Return the names of all cards: the program's own, and those in the user's folder of cards.

    Raises:
        InputError: there is no such folder.
    """
    if cards_dir is None:
        return card_names()
    if not os.path.isdir(cards_dir):  # noqa: PTH112 - Path.is_dir raises below a locked folder
        raise InputError(
            f"cards_dir={cards_dir}: there is no such folder. Give the one with cards."
        )
    return sorted({*card_names(), *card_names(cards_dir)})


def load_card(name: str, cards_dir: Path | None = None) -> DatasetCard:
    """Read and check the card of one dataset.

    Args:
        name: the dataset's name, such as "eurosat".
        cards_dir: a folder of the user's own cards, one NAME.yaml each, beside the program's own.

    Raises:
        InputError: no such folder or dataset (the message offers the nearest names), a malformed
            card (the message names file and key), or another card for a published name.
    """
    known = known_cards(cards_dir)
    if name in USER_LAYOUTS:
        raise InputError(
            f"dataset={name}: is for your own images. They need no card and no preparation; see "
            "docs/how_to/own_images.md."
        )
    if name not in known:
        raise InputError(
            f"dataset={name}: there is no dataset of that name.{nearest(name, known)} "
            f"Known: {', '.join(known)}. cards_dir=FOLDER adds your own cards."
        )
    return _read_card(name, cards_dir)


def _card_file(name: str, cards_dir: Path | None) -> Path:
    """Return the file of a card; InputError if the user's card has the name of another one."""
    own = CARDS_DIR / f"{name}.yaml"
    file = own if cards_dir is None else cards_dir / own.name
    if not file.exists():
        return own
    if own.exists() and file.read_bytes() != own.read_bytes():
        raise InputError(f"{file}: {name} is the name of a published dataset. Choose another name.")
    return own if own.exists() else file


def _read_card(name: str, cards_dir: Path | None, is_parent: bool = False) -> DatasetCard:
    file = _card_file(name, cards_dir)
    try:
        content = load_plain_yaml(read_plain(file, MAX_YAML_BYTES))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{file}: the card cannot be read: {error}") from error
    if not isinstance(content, dict):
        kind = "nothing" if content is None else f"{type(content).__name__} {str(content)[:40]!r}"
        raise InputError(f"{file}: a card is a mapping of keys, not {kind}.")
    content, parent_labels = _with_parent_classes(file, content, cards_dir, is_parent)
    try:
        checked = CardFile.model_validate(content)
    except ValidationError as error:
        raise card_error(error, file) from error
    if checked.name != name:
        raise InputError(f"{file}: name: must be the name of the file, {name!r}.")
    values = checked.model_dump()
    ensemble = values["templates"].pop("ensemble")
    lists = ("class_names", "sources", "class_folders", "other_folders")
    values |= {key: tuple(values[key] or ()) for key in lists}
    card = DatasetCard(
        **values, parent_labels=parent_labels, template_ensemble=tuple(ensemble or ())
    )
    if file.parent == CARDS_DIR:
        return card
    facts = {key: value for key, value in vars(card).items() if key not in _WITHOUT_EFFECT}
    sha256 = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return replace(card, user_file=file, user_sha256=sha256)


def _with_parent_classes(
    file: Path, content: dict[Any, Any], cards_dir: Path | None, is_parent: bool
) -> tuple[dict[Any, Any], tuple[int, ...]]:
    """Add class names and templates of the card that `classes_of` names.

    Returns:
        The content, and the labels of its classes in the parent; () without a parent.
    """

    def wrong(key: str, problem: str) -> InputError:
        return InputError(f"{file}: {key}: {problem}.")

    name = content.get("classes_of")
    if (name is not None) != (content.get("layout") in TEST_LAYOUTS):
        raise wrong(
            "classes_of", f"goes with layout: {' or '.join(TEST_LAYOUTS)}, and only with these"
        )
    if name is None:
        return content, ()
    for key in ("class_names", "templates"):
        if key in content:
            raise wrong(key, f"comes from classes_of: {name}. Leave it out")
    if is_parent or name not in known_cards(cards_dir) or name == file.stem:
        raise wrong("classes_of", f"must name another card that has class_names, not {name!r}")
    parent = _read_card(name, cards_dir, is_parent=True)
    labels = {folder: label for label, folder in enumerate(parent.class_folders)}
    folders = content.get("class_folders")
    if folders is None:
        folders = list(labels)
    if not isinstance(folders, list) or not folders:
        raise wrong("class_folders", f"must be a list of texts, not {folders!r}")
    for index, folder in enumerate(folders):
        if not isinstance(folder, str) or folder not in labels:
            raise wrong(f"class_folders[{index}]", f"{folder!r} is not a class of {name}")
    parent_labels = tuple(labels[folder] for folder in folders)
    inherited = {
        "class_folders": folders,
        "class_names": [parent.class_names[label] for label in parent_labels],
        "templates": {**parent.templates, "ensemble": list(parent.template_ensemble) or None},
    }
    return content | inherited, parent_labels


def check_trainable(card: DatasetCard) -> None:
    """Raise InputError if the dataset has only test images."""
    if card.test_only:
        raise InputError(
            f"dataset={card.name}: {card.title} is for testing only, it has no training images. "
            f"Train on dataset={card.classes_of} and add transfer=[{card.name}], or choose "
            "method=zero_shot."
        )


def how_to_get(card: DatasetCard) -> str:
    """Return one sentence about how to get the files of a dataset."""
    if card.layout in USER_LAYOUTS:
        return "They are your own images: docs/how_to/own_images.md explains their layout."
    if card.package:
        return f"They come in a package ({card.homepage}): {install(card.package['install'])}."
    by_hand = (
        f"ay {card.title} out as CoOp's DATASETS.md says "
        f"(github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md; images: {card.homepage})."
    )
    if not card.sources:
        return f"L{by_hand}"
    root = "data_root=FOLDER"
    if card.data_root is not None:
        root = override("data_root", card.data_root)
    places = [root, *([override("cards_dir", card.user_file.parent)] if card.user_file else [])]
    prepare = command("prepare", override("dataset", card.name), *places)
    return f"Run {prepare}; or l{by_hand}"
