"""CoOp's split files: JSON lists of images with their labels and class names."""

import errno
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import normpath
from typing import Any

from so_clip.data.cards.card import DatasetCard, how_to_get
from so_clip.data.examples import SPLITS, Example, Splits
from so_clip.data.safe_path import why_outside
from so_clip.errors import InputError

# A hostile file may have millions.
MAX_PROBLEMS = 100


def read_split_file(file: Path, card: DatasetCard) -> Splits:
    """Read one CoOp split file: {"train" | "val" | "test": [[path, label, class name], ...]}.

    Args:
        file: the JSON file.
        card: the dataset, for its name and for advice.

    Raises:
        InputError: not JSON, not of that shape, an image outside the dataset's folder, one image
            listed twice, or labels with gaps or with two names.
    """
    splits, problems = read_sound_part(file, card)
    if problems:
        raise problems[0]
    return splits


def read_sound_part(file: Path, card: DatasetCard) -> tuple[Splits, list[InputError]]:
    """Read what can be used of a split file, and say what is wrong with it, up to `MAX_PROBLEMS`.

    Raises:
        InputError: the file cannot be read, or is not JSON.
    """
    content, sha256 = _read_json(file, card)
    reader = _SplitFileReader(file, card)
    lists = {name: reader.examples(name, content) for name in SPLITS}
    for name in ("train", "test"):
        if not lists[name]:
            reader.refuse(f"the {name} list is empty")
    splits = Splits(
        train=lists["train"],
        val=lists["val"],
        test=lists["test"],
        class_names=reader.class_names(),
        file=file,
        sha256=sha256,
        dataset=card.name,
    )
    return splits, reader.problems


def _read_json(file: Path, card: DatasetCard) -> tuple[Any, str]:
    try:
        # A pipe would be waited for, and a device read, for ever.
        if file.exists() and not file.is_file() and not file.is_dir():
            raise OSError(errno.EINVAL, "it is not a plain file")
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
    """Checks the entries of one split file, remembering images and names across its lists.

    What cannot be used is left out, and told in `problems`.
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
                self.refuse(f"{place} is {_short(entry)}, not [path, label, class name]")
                continue
            path, label, name = entry
            problem = self._of_path(place, path) or self._of_label(place, label, name)
            if problem:
                self.refuse(f"{place} {problem}")
            else:
                yield Example(path, label)

    def _of_path(self, place: str, path: Any) -> str:
        """Return what is wrong with the path of an entry, "" if nothing is."""
        if not isinstance(path, str):
            return f"has the path {_short(path)}, which is not text"
        if reason := why_outside(path):
            return f"names {_short(path)}, outside the dataset's image folder: {reason}"
        # "a//b.jpg" and "a/./b.jpg" open the same file as "a/b.jpg".
        first = self.seen.setdefault(normpath(path), place)
        return "" if first == place else f"repeats the image {_short(path)} of {first}"

    def _of_label(self, place: str, label: Any, name: Any) -> str:
        """Return what is wrong with the label and the name of an entry, "" if nothing is."""
        # True is an int to Python, but no label.
        if type(label) is not int or label < 0:
            return f"has the label {_short(label)}, which is not a whole number from 0"
        if not isinstance(name, str) or not name.strip():
            return f"has the class name {_short(name)}, which is not a name"
        known, first = self.names.setdefault(label, (name, place))
        if known == name:
            return ""
        return f"has {_short(name)} for label {label}, but {first} has {_short(known)}"


def _short(value: Any) -> str:
    # Never the whole of it: the file may be hostile, and a message is one line.
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}…{text[-15:]}"
