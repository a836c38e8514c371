"""Cards of sentence datasets: facts and file layouts, read from one YAML file and checked."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from so_clip.data.cards.card import card_names
from so_clip.data.cards.card_file import (
    Below,
    Count,
    FolderName,
    Strict,
    Text,
    card_error,
    rule,
    wrong_key,
)
from so_clip.data.plain_files import load_plain_yaml, shortened
from so_clip.errors import InputError, nearest
from so_clip.system.commands import command, override
from so_clip.system.paths import CARDS_DIR
from so_clip.system.safe_open import MAX_YAML_BYTES, read_plain

SENTENCE_CARDS_DIR = CARDS_DIR / "sentences"
# Columns of a file without a header have numbers.
MAX_COLUMNS = 1000


def _is_column(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return type(value) is int and 0 <= value < MAX_COLUMNS


_Column = Annotated[
    str | int, rule(_is_column, "the name of a column, or its number from 0 if there is no header")
]


class ParquetFiles(Strict):
    """Parquet files: the columns, and the first part of the files' names.

    The stem `train` stands for train.parquet, or for the hub's train-00000-of-00001.parquet, ....
    """

    first: Text
    second: Text | None = None
    label: Text
    train: FolderName = "train"
    validation: FolderName = "validation"


class TsvFiles(Strict):
    """Files with tabs and without quotes, as GLUE has them: the columns and the files' names.

    Columns have names, or numbers from 0 if the file has no header. `archive` is a zip that holds
    the files in `folder`.
    """

    first: _Column
    second: _Column | None = None
    label: _Column
    train: FolderName = "train.tsv"
    validation: FolderName = "dev.tsv"
    archive: FolderName | None = None
    folder: FolderName | None = None

    @property
    def has_header(self) -> bool:
        """Whether the first line of a file names the columns."""
        return isinstance(self.first, str)

    @model_validator(mode="after")
    def _check_columns(self) -> "TsvFiles":
        columns = [column for column in (self.first, self.second, self.label) if column is not None]
        if len({type(column) for column in columns}) > 1:
            raise wrong_key("tsv", "must give all columns names, or all numbers")
        return self


class Sizes(Strict):
    """Published numbers of examples."""

    train: Count
    validation: Count


_NESTED: Mapping[str, type[BaseModel]] = {
    "parquet": ParquetFiles,
    "tsv": TsvFiles,
    "sizes": Sizes,
}


class _CardFile(Strict):
    """The content of a card's file. SentenceCard explains the keys."""

    name: Text
    title: Text
    folder: Below
    other_folders: Annotated[list[Below], Field(min_length=1)] | None = None
    label_names: Annotated[list[Text], Field(min_length=2)]
    parquet: ParquetFiles | None = None
    tsv: TsvFiles | None = None
    sizes: Sizes | None = None
    licence: Text
    homepage: Text
    citation: Text
    sources: list[dict[Any, Any]] | None = None

    @model_validator(mode="after")
    def _check(self) -> "_CardFile":
        seen = set()
        for index, name in enumerate(self.label_names):
            if not name.isprintable() or name != name.strip():
                raise wrong_key(
                    f"label_names[{index}]",
                    f"must be one line without blanks at its ends, not {shortened(name)}",
                )
            if name in seen:
                raise wrong_key(f"label_names[{index}]", f"{shortened(name)} is there twice")
            seen.add(name)
        if self.parquet is None and self.tsv is None:
            raise wrong_key("parquet", "is missing, and so is tsv. Give one of them")
        layouts = [layout for layout in (self.parquet, self.tsv) if layout is not None]
        if len({layout.second is None for layout in layouts}) > 1:
            raise wrong_key("tsv.second", "goes with parquet.second. Give both, or none")
        return self


@dataclass(frozen=True)
class SentenceCard:
    """One dataset of labelled sentences or pairs of sentences, as its YAML file describes it.

    Attributes:
        name: the name on the command line and of the file.
        title: the name for people.
        folder: its folder below the data root.
        other_folders: folders of the same files in other code bases.
        label_names: in label order.
        parquet, tsv: columns and names of the files; at least one of the two.
        sizes: published numbers of examples in `train` and `validation`, if they are known.
        licence, homepage, citation: for people.
        sources: where to get the files, one mapping each; see so_clip.prepare.sources.
        user_file: the file of a card in a folder of the user's cards.
    """

    name: str
    title: str
    folder: str
    other_folders: tuple[str, ...]
    label_names: tuple[str, ...]
    parquet: ParquetFiles | None
    tsv: TsvFiles | None
    sizes: Sizes | None
    licence: str
    homepage: str
    citation: str
    sources: tuple[dict[str, Any], ...] = ()
    user_file: Path | None = None


def is_sentence_card(name: str, cards_dir: Path | None = None) -> bool:
    """Return whether a dataset of this name has a card of sentences."""
    if _exists(SENTENCE_CARDS_DIR, name):
        return True
    if cards_dir is None or not _exists(cards_dir, name):
        return False
    try:
        content = _content(cards_dir / f"{name}.yaml")
    except InputError:
        return False
    return isinstance(content, dict) and "label_names" in content


def _exists(folder: Path, name: str) -> bool:
    """Return whether a folder has a card of this name; any text may be a name."""
    # Path.exists raises for long names and in locked folders.
    return name == Path(name).name and os.path.exists(folder / f"{name}.yaml")  # noqa: PTH110


def known_sentence_cards(cards_dir: Path | None = None) -> list[str]:
    """Return the names of all cards of sentences, the user's included.

    Raises:
        InputError: there is no such folder of cards.
    """
    names = {file.stem for file in SENTENCE_CARDS_DIR.glob("*.yaml")}
    if cards_dir is not None:
        _check_folder(cards_dir)
        own = (file.stem for file in cards_dir.glob("*.yaml"))
        names |= {name for name in own if is_sentence_card(name, cards_dir)}
    return sorted(names)


def _check_folder(cards_dir: Path) -> None:
    if not os.path.isdir(cards_dir):  # noqa: PTH112 - Path.is_dir raises below a locked folder
        raise InputError(
            f"cards_dir={cards_dir}: there is no such folder. Give the one with cards."
        )


def image_card_names(cards_dir: Path = CARDS_DIR) -> list[str]:
    """Return the names of the cards of images in a folder, sorted."""
    return [name for name in card_names(cards_dir) if not is_sentence_card(name, cards_dir)]


def words_of_runs(card: SentenceCard) -> list[str]:
    """Return the words that begin a run on a dataset: `rte`, or `sentences dataset=NAME`."""
    if card.user_file is None:
        return [card.name]
    return ["sentences", override("dataset", card.name)]


def load_sentence_card(name: str, cards_dir: Path | None = None) -> SentenceCard:
    """Read and check the card of one dataset of sentences.

    Args:
        name: the dataset's name, such as "rte".
        cards_dir: a folder of the user's own cards, one NAME.yaml each.

    Raises:
        InputError: no such folder or dataset (the message offers the nearest names), a malformed
            card (the message names file and key), or another card for a published name.
    """
    if cards_dir is not None:
        _check_folder(cards_dir)
    has_shipped = _exists(SENTENCE_CARDS_DIR, name)
    has_own = cards_dir is not None and _exists(cards_dir, name)
    if not (has_shipped or has_own):
        known = known_sentence_cards(cards_dir)
        raise InputError(
            f"dataset={name}: there is no dataset of sentences with that name."
            f"{nearest(name, known)} Known: {', '.join(known)}. cards_dir=FOLDER adds your own "
            "cards."
        )
    shipped = SENTENCE_CARDS_DIR / f"{name}.yaml"
    if cards_dir is None or not has_own:
        return _read_card(name, shipped, None)
    own = cards_dir / f"{name}.yaml"
    if not has_shipped:
        return _read_card(name, own, own)
    if _content(own) != _content(shipped):
        raise InputError(f"{own}: {name} is the name of a published dataset. Choose another name.")
    return _read_card(name, shipped, None)


def _content(file: Path) -> Any:
    """Return the content of a card's file, unchecked."""
    try:
        return load_plain_yaml(read_plain(file, MAX_YAML_BYTES))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{file}: the card cannot be read: {error}") from error


def _read_card(name: str, file: Path, user_file: Path | None) -> SentenceCard:
    content = _content(file)
    if not isinstance(content, dict):
        kind = "nothing" if content is None else f"{type(content).__name__} {str(content)[:40]!r}"
        raise InputError(f"{file}: a card is a mapping of keys, not {kind}.")
    if "layout" in content:
        raise InputError(f"{file}: is a card of images. Cards of sentences have label_names.")
    try:
        checked = _CardFile.model_validate(content)
    except ValidationError as error:
        raise card_error(error, file, _CardFile, _NESTED) from error
    if checked.name != name:
        raise InputError(f"{file}: name: must be the name of the file, {name!r}.")
    return SentenceCard(
        name=checked.name,
        title=checked.title,
        folder=checked.folder,
        other_folders=tuple(checked.other_folders or ()),
        label_names=tuple(checked.label_names),
        parquet=checked.parquet,
        tsv=checked.tsv,
        sizes=checked.sizes,
        licence=checked.licence,
        homepage=checked.homepage,
        citation=checked.citation,
        sources=tuple(checked.sources or ()),
        user_file=user_file,
    )


def how_to_get_sentences(card: SentenceCard, data_root: Path) -> str:
    """Return one sentence about how to get the files of a dataset of sentences."""
    folder = data_root / card.folder
    names = []
    if card.parquet:
        names.append(f"{card.parquet.train}.parquet and {card.parquet.validation}.parquet")
    if card.tsv:
        names.append(f"{card.tsv.train} and {card.tsv.validation}")
        names += [card.tsv.archive] if card.tsv.archive else []
    by_hand = f"ut {', or '.join(names)} into {folder} ({card.homepage})."
    if not card.sources:
        return f"P{by_hand}"
    places = [override("data_root", data_root)]
    places += [override("cards_dir", card.user_file.parent)] if card.user_file else []
    prepare = command("prepare", override("dataset", card.name), *places)
    return f"Run {prepare}; or p{by_hand}"
