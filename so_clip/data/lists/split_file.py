"""CoOp's split files: JSON lists of images with their labels and class names."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import normpath
from typing import Any

from so_clip.data.cards.card import DatasetCard, how_to_get
from so_clip.data.examples import SPLITS, Example, Splits
from so_clip.data.plain_files import load_plain_json, shortened
from so_clip.data.safe_path import why_outside
from so_clip.data.unicode_names import composed
from so_clip.errors import InputError, reason_of
from so_clip.system.safe_open import MAX_LIST_BYTES, read_plain

# A hostile file may have millions.
MAX_PROBLEMS = 100


def read_split_file(file: Path, card: DatasetCard) -> Splits:
    """Read a CoOp split file: {"train" | "val" | "test": [[path, label, class name], ...]}.

    Args:
        file: the JSON file.
        card: the dataset, for its name and for advice.

    Raises:
        InputError: not JSON, another structure, an image outside the dataset's folder, a repeated
            image, or labels with gaps or with two names.
    """
    splits, problems = read_sound_part(file, card)
    if problems:
        raise problems[0]
    return splits


def read_sound_part(file: Path, card: DatasetCard) -> tuple[Splits, list[InputError]]:
    """Read the sound entries of a split file, and return up to `MAX_PROBLEMS` problems.

    Raises:
        InputError: the file cannot be read, or is not JSON.
    """
    content, sha256 = _read_json(file, card)
    reader = _SplitFileReader(file, card)
    lists = {name: reader.examples(name, content) for name in SPLITS}
    for name in ("train", "test"):
        if not lists[name]:
            reader.refuse(f"the {name} list is empty")
    names = reader.class_names()
    splits = Splits.of(lists, class_names=names, file=file, sha256=sha256, dataset=card.name)
    return splits, reader.problems


def _read_json(file: Path, card: DatasetCard) -> tuple[Any, str]:
    try:
        data = read_plain(file, MAX_LIST_BYTES)
    except (OSError, ValueError) as error:
        reason = reason_of(error)
        raise InputError(
            f"{file}: the split file cannot be read: {reason}. {how_to_get(card)}"
        ) from error
    try:
        return load_plain_json(data), hashlib.sha256(data).hexdigest()
    # A hostile file may nest deeper than Python's stack, or have a number of a million digits.
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{file}: the split file is not JSON ({error}). {_fetch_again(card)}"
        ) from error


def _fetch_again(card: DatasetCard) -> str:
    return f"Repair it, or fetch it again. {how_to_get(card)}"


@dataclass
class _SplitFileReader:
    """Checks the entries of one split file, and remembers images and names across its lists.

    Bad entries are left out and described in `problems`.
    """

    file: Path
    card: DatasetCard
    seen: dict[str, str] = field(default_factory=dict)
    names: dict[int, tuple[str, str]] = field(default_factory=dict)
    problems: list[InputError] = field(default_factory=list)

    def examples(self, split: str, content: Any) -> list[Example]:
        if not isinstance(content, dict) or not isinstance(content.get(split), list):
            self.refuse(
                f"expected a mapping with the lists train, val and test, but found no list {split}"
            )
            return []
        return list(self._checked(split, content[split]))

    def class_names(self) -> list[str]:
        count = len(self.names)
        for label in range(count):
            if label not in self.names:
                highest = max(self.names)
                self.refuse(
                    f"label {label} has no images, though labels reach {highest}: they must count "
                    "from 0 without gaps"
                )
                break
        return [self.names[label][0] for label in sorted(self.names)]

    def refuse(self, problem: str) -> None:
        if len(self.problems) == MAX_PROBLEMS:
            return
        self.problems.append(InputError(f"{self.file}: {problem}. {_fetch_again(self.card)}"))

    def _checked(self, split: str, entries: list[Any]) -> Iterator[Example]:
        for index, entry in enumerate(entries):
            place = f"{split}[{index}]"
            if not isinstance(entry, list) or len(entry) != 3:
                self.refuse(f"{place} is {shortened(entry)}, not [path, label, class name]")
                continue
            path, label, name = entry
            problem = self._path_problem(place, path) or self._label_problem(place, label, name)
            if problem:
                self.refuse(f"{place} {problem}")
            else:
                yield Example(path, label)

    def _path_problem(self, place: str, path: Any) -> str:
        if not isinstance(path, str):
            return f"has the path {shortened(path)}, which is not text"
        if reason := why_outside(path):
            return f"names {shortened(path)}, outside the dataset's image folder: {reason}"
        # "a//b.jpg" and "a/./b.jpg" open the same file as "a/b.jpg".
        first = self.seen.setdefault(composed(normpath(path)), place)
        return "" if first == place else f"repeats the image {shortened(path)} of {first}"

    def _label_problem(self, place: str, label: Any, name: Any) -> str:
        # True is an int in Python, but not a label.
        if type(label) is not int or label < 0:
            return f"has the label {shortened(label)}, which is not a whole number from 0"
        if not isinstance(name, str) or not name.strip():
            return f"has the class name {shortened(name)}, which is not a name"
        known, first = self.names.setdefault(label, (name, place))
        if composed(known) == composed(name):
            return ""
        return f"has {shortened(name)} for label {label}, but {first} has {shortened(known)}"
