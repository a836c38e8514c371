"""From what a folder or a label is called to a class's name in prompts."""

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from so_clip.data.cards.card_file import problem_of_class_names
from so_clip.data.lists.listing import composed
from so_clip.data.user.text_files import lines_of, read_values
from so_clip.errors import InputError, nearest

_OPTION = "dataset.class_names=FILE"


def readable(key: str) -> str:
    """Return a key as words: composed Unicode, blanks in place of _ and -, and none twice."""
    return " ".join(re.sub("[_-]", " ", composed(key)).split())


def in_order(keys: Iterable[str]) -> list[str]:
    """Return the keys of all classes in the order of their labels.

    That is by number where all are whole numbers, and by the characters' numbers otherwise.
    """
    found = list(keys)
    if all(re.fullmatch("[0-9]{1,18}", key) for key in found):
        return sorted(found, key=lambda key: (int(key), key))
    return sorted(found)


def class_names(keys: Sequence[str], file: Path | None, place: Path) -> list[str]:
    """Return the names of the classes, by label.

    Args:
        keys: by label: names of folders, or labels of a CSV file.
        file: a mapping from keys to names, in which keys may be left out; or a list of all names in
            the order of labels. JSON, YAML, or text: a name a line, or a key, a tab and a name.
        place: of the dataset, for messages.

    Raises:
        InputError: a file that is neither or says of classes that are not there, a name that no
            prompt can hold, or one name for two classes; the message says what to do.
    """
    names = [readable(key) for key in keys]
    if file is not None:
        names = _from_file(file, keys, names)
    for key, name in zip(keys, names, strict=True):
        if not name or not name.isprintable():
            raise InputError(
                f"{place}: the class {key!a} has no name that a prompt could hold. Rename it, or "
                f"give it one by {_OPTION}."
            )
    _refuse_alike(keys, names, place)
    return names


def read_as_number(number: str, known: Set[str]) -> str:
    """Say which class YAML has read as this number, such as 001 (as 1) or 010 (as 8); "" if none.

    Args:
        number: what YAML has made of a key without quotes.
        known: names or keys of all classes.
    """
    if number in known:
        return ""
    padded = sorted(
        key
        for key in known
        if re.fullmatch("0[0-9]{1,17}", key)
        # YAML 1.1 reads what begins with 0 as octal where its digits allow it.
        and int(number) in {int(key), int(key, 8) if re.fullmatch("[0-7]+", key) else -1}
    )
    if not padded:
        return ""
    return (
        f"YAML has read a key as the number {number}, which is no class. Put the name in quotes, "
        f'such as "{padded[0]}".'
    )


def _from_file(file: Path, keys: Sequence[str], names: list[str]) -> list[str]:
    values = read_values(file, "dataset.class_names")
    if isinstance(values, str):
        values = _of_lines(file, values)
    if isinstance(values, Mapping):
        given = {composed(str(key)): _name(file, str(key), name) for key, name in values.items()}
        known = set(keys)
        for key in values:
            if key is None or isinstance(key, bool):
                if str(key) not in known:
                    problem = f"YAML has read a key as {key}. Put the name in quotes."
                    raise InputError(f"{file}: {problem}")
            elif isinstance(key, int) and (meant := read_as_number(str(key), known)):
                raise InputError(f"{file}: {meant}")
        for key in given:
            if key not in known:
                raise InputError(
                    f"{file}: {key!r} is no class.{nearest(key, keys)} The classes are "
                    f"{', '.join(map(repr, keys[:5]))}{', ...' if len(keys) > 5 else ''}."
                )
        return [given.get(key, name) for key, name in zip(keys, names, strict=True)]
    if not isinstance(values, list):
        raise InputError(f"{file}: must hold a mapping from classes to names, or a list of names.")
    if len(values) != len(keys):
        raise InputError(
            f"{file}: lists {len(values)} names, but there are {len(keys)} classes, from "
            f"{keys[0]!r} to {keys[-1]!r}. List one for each, or write a mapping."
        )
    return [_name(file, key, name) for key, name in zip(keys, values, strict=True)]


def _of_lines(file: Path, text: str) -> Any:
    lines = lines_of(text)
    if not lines or not all("\t" in line for line in lines):
        return lines
    names: dict[str, str] = {}
    for line in lines:
        key, name = line.split("\t", 1)
        if key in names:
            raise InputError(f"{file}: the key {key!r} is given twice. Leave one of them out.")
        names[key] = name
    return names


def _name(file: Path, key: str, name: Any) -> str:
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"{file}: the name of {key!r} must be text, not {name!r}.")
    return " ".join(composed(name).split())


def _refuse_alike(keys: Sequence[str], names: Sequence[str], place: Path) -> None:
    problem = problem_of_class_names(names, have_folders=False)
    if problem is None:
        return
    seen: dict[str, str] = {}
    for key, name in zip(keys, names, strict=True):
        first = seen.setdefault(readable(name).lower(), key)
        if first != key:
            raise InputError(
                f"{place}: the classes {first!r} and {key!r} are both {name!r} in a prompt. Name "
                f"them apart by {_OPTION}, or make them one class."
            )
    raise InputError(f"{place}: {': '.join(problem)}.")
