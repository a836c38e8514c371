"""Which images a dataset has, with which labels, in its train, val and test lists."""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import normpath
from typing import Any, NamedTuple

from so_clip.data.cards import DatasetCard, how_to_get
from so_clip.data.inside import why_outside
from so_clip.errors import InputError

SPLITS = ("train", "val", "test")


class Example(NamedTuple):
    """One labelled image: `path` below the image folder, exactly as listed, and its `label`."""

    path: str
    label: int


@dataclass(frozen=True)
class Splits:
    """The three lists of a dataset, in the order of its files: few-shot draws depend on it.

    Attributes:
        train, val, test: the labelled images.
        class_names: the name of each label.
        file: what they were read from: the split file, or the folder of class folders or lists.
        sha256: of the split file's bytes. Where the lists come from several files or from a
            folder, of their contents one after the other, or of the listing.
        dataset: the card's name.
        val_from_train: there is no val list (ImageNet), so CLIP-LoRA's protocol takes its
            validation images out of the train list.
    """

    train: list[Example]
    val: list[Example]
    test: list[Example]
    class_names: list[str]
    file: Path | None = None
    sha256: str | None = None
    dataset: str = ""
    val_from_train: bool = False


def load_splits(
    card: DatasetCard, data_root: Path | None, split_file: Path | None = None
) -> Splits:
    """Read the train, val and test lists of a dataset. Images are not looked at.

    Class names and their order come from the split file where there is one, as in CoOp.

    Args:
        card: the dataset.
        data_root: the folder of all datasets. A split file is looked for in the dataset's folder,
            then in `data_root` itself and in `data_root`/splits (flat collections of split files).
            The digits ship with the package and need none.
        split_file: read this file instead.

    Raises:
        InputError: no data root, no split file, or one that cannot be used; the message names the
            file, the entry and its value, and the way out.

    Source: the layouts of github.com/KaiyangZhou/CoOp, DATASETS.md and datasets/*.py.
    """
    # These modules build Splits, so they import this one.
    from so_clip.data import layouts

    if card.layout == "split_file":
        return read_split_file(split_file or _find_split_file(card, data_root), card)
    if split_file is not None:
        raise InputError(
            f"dataset.split_file={split_file}: {card.title} has no split file; its lists come from "
            f"layout: {card.layout}. Leave dataset.split_file out."
        )
    if card.layout == "digits":
        return layouts.digits_splits(card)
    read = {"imagenet": layouts.imagenet_splits, "fgvc_aircraft": layouts.aircraft_splits}
    return read[card.layout](card, require_data_root(card, data_root) / card.folder)


def require_data_root(card: DatasetCard, data_root: Path | None) -> Path:
    """Return `data_root` if it is a folder.

    Raises:
        InputError: it is not given, does not exist or is no folder.
    """
    if data_root is None:
        problem = "data_root is not given"
    else:
        try:
            if stat.S_ISDIR(data_root.stat().st_mode):
                return data_root
            problem = f"data_root={data_root} is not a folder"
        except (OSError, ValueError) as error:
            problem = f"data_root={data_root}: {getattr(error, 'strerror', None) or error}"
    raise InputError(
        f"{problem}. Give the folder that holds {card.folder}/ with data_root=FOLDER. "
        f"{how_to_get(card)}"
    )


def _find_split_file(card: DatasetCard, data_root: Path | None) -> Path:
    root = require_data_root(card, data_root)
    assert card.split_file is not None, "load_card sees to it"
    places = [root / card.folder, root, root / "splits"]
    candidates = [place / card.split_file for place in places]
    for candidate in candidates:
        if os.path.isfile(candidate):  # noqa: PTH113 - Path.is_file raises on a locked folder
            return candidate
    looked = "\n".join(f"  {candidate}" for candidate in candidates)
    raise InputError(
        f"the split file of dataset={card.name} was not found. Looked for:\n{looked}\n"
        f"{how_to_get(card)} Or name the file: dataset.split_file=FILE."
    )


def read_split_file(file: Path, card: DatasetCard) -> Splits:
    """Read one CoOp split file: {"train" | "val" | "test": [[path, label, class name], ...]}.

    Args:
        file: the JSON file.
        card: the dataset, for its name and for advice.

    Raises:
        InputError: not JSON, not of that shape, an image outside the dataset's folder, one image
            listed twice, or labels with gaps or with two names.
    """
    content, sha256 = _read_json(file, card)
    reader = _SplitFileReader(file, card)
    lists = {name: reader.examples(name, content) for name in SPLITS}
    for name in ("train", "test"):
        if not lists[name]:
            raise reader.wrong(f"the {name} list is empty")
    return Splits(
        train=lists["train"],
        val=lists["val"],
        test=lists["test"],
        class_names=reader.class_names(),
        file=file,
        sha256=sha256,
        dataset=card.name,
    )


def _read_json(file: Path, card: DatasetCard) -> tuple[Any, str]:
    try:
        data = file.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{file}: the split file cannot be read: {reason}. {how_to_get(card)}"
        ) from error
    try:
        return json.loads(data, object_pairs_hook=_mapping), hashlib.sha256(data).hexdigest()
    # A hostile file may nest deeper than Python's stack or write a number of a million digits.
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{file}: the split file is not JSON ({error}). {_fetch_again(card)}"
        ) from error


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key is given twice")
    return content


def _fetch_again(card: DatasetCard) -> str:
    return f"Mend it, or fetch it again. {how_to_get(card)}"


@dataclass
class _SplitFileReader:
    """Checks the entries of one split file, remembering images and names across its lists."""

    file: Path
    card: DatasetCard
    seen: dict[str, str] = field(default_factory=dict)
    names: dict[int, tuple[str, str]] = field(default_factory=dict)

    def examples(self, split: str, content: Any) -> list[Example]:
        if not isinstance(content, dict) or not isinstance(content.get(split), list):
            raise self.wrong(
                f"expected a mapping with the lists train, val and test, but found no list {split}"
            )
        return list(self._checked(split, content[split]))

    def class_names(self) -> list[str]:
        count = len(self.names)
        for label in range(count):
            if label not in self.names:
                highest = max(self.names)
                raise self.wrong(
                    f"label {label} has no images, though labels reach {highest}: they must count "
                    "from 0 without gaps"
                )
        return [self.names[label][0] for label in range(count)]

    def wrong(self, problem: str) -> InputError:
        return InputError(f"{self.file}: {problem}. {_fetch_again(self.card)}")

    def _checked(self, split: str, entries: list[Any]) -> Iterator[Example]:
        for index, entry in enumerate(entries):
            place = f"{split}[{index}]"
            if not isinstance(entry, list) or len(entry) != 3:
                raise self.wrong(f"{place} is {_short(entry)}, not [path, label, class name]")
            path, label, name = entry
            self._check_path(place, path)
            self._check_label(place, label, name)
            yield Example(path, label)

    def _check_path(self, place: str, path: Any) -> None:
        if not isinstance(path, str):
            raise self.wrong(f"{place} has the path {_short(path)}, which is not text")
        if reason := why_outside(path):
            raise self.wrong(
                f"{place} names {_short(path)}, outside the dataset's image folder: {reason}"
            )
        # "a//b.jpg" and "a/./b.jpg" open the same file as "a/b.jpg".
        first = self.seen.setdefault(normpath(path), place)
        if first != place:
            raise self.wrong(f"{place} repeats the image {_short(path)} of {first}")

    def _check_label(self, place: str, label: Any, name: Any) -> None:
        # True is an int to Python, but no label.
        if type(label) is not int or label < 0:
            raise self.wrong(
                f"{place} has the label {_short(label)}, which is not a whole number from 0"
            )
        if not isinstance(name, str) or not name.strip():
            raise self.wrong(f"{place} has the class name {_short(name)}, which is not a name")
        known, first = self.names.setdefault(label, (name, place))
        if known != name:
            raise self.wrong(
                f"label {label} is {_short(name)} in {place}, but {_short(known)} in {first}"
            )


def _short(value: Any) -> str:
    # Never the whole of it: the file may be hostile, and a message is one line.
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}…{text[-15:]}"
