"""Class names for prompts, from the names of folders, the labels of a CSV file, or a file."""

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from decimal import Decimal
from pathlib import Path
from typing import Any

from so_clip.data.cards.card_file import problem_of_class_names
from so_clip.data.plain_files import read_values, text_lines
from so_clip.data.unicode_names import composed
from so_clip.errors import InputError, nearest

_OPTION = "dataset.class_names=FILE"
# More digits or larger exponents are no labels.
_NUMBER = re.compile(r"[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})(e[+-]?[0-9]{1,3})?", re.I)


def readable(key: str) -> str:
    """Return a key as words: composed Unicode, with single blanks in place of _ and -.

    A number keeps its sign.
    """
    words = composed(key).strip()
    return words if number_of(words) is not None else " ".join(re.sub("[_-]", " ", words).split())


def number_of(key: str) -> Decimal | None:
    """Return the value of a key that is a finite number, such as 007, -1, 3.0 or 1e-3."""
    return Decimal(key) if _NUMBER.fullmatch(key) else None


def in_order(keys: Iterable[str]) -> list[str]:
    """Return the keys of all classes in the order of their labels.

    Keys are sorted by value if all are finite numbers, and by code points otherwise.
    """
    found = list(keys)
    values = {key: value for key in found if (value := number_of(key)) is not None}
    if len(values) == len(found):
        return sorted(found, key=lambda key: (values[key], key))
    return sorted(found)


def pairs_text(pairs: Sequence[tuple[str, str]], most: int) -> str:
    """Return "key = name" of each class; of the first and the last if there are more than `most`.

    They show to which class each name of a list belongs.
    """
    texts = [f"{key} = {name}" for key, name in pairs]
    if len(texts) > most:
        texts = [*texts[: most // 2], "...", *texts[-(most // 2) :]]
    return ", ".join(texts)


class Names(list[str]):
    """The names of classes by label; `by_position` if a list without keys gave them."""

    by_position = False


def class_names(keys: Sequence[str], file: Path | None, place: Path) -> Names:
    """Return the names of the classes, by label.

    Args:
        keys: names of folders, or labels of a CSV file, in label order.
        file: a mapping from keys to names, which may leave keys out; or a list of all names in
            label order. JSON, YAML, or text with one name per line, or key, tab and name.
        place: the place of the dataset, for messages.

    Raises:
        InputError: the file is neither or names unknown classes, a name is impossible in a prompt,
            or two classes have the same name; the message says what to do.
    """
    names = Names(readable(key) for key in keys)
    if file is not None:
        names = _from_file(file, keys, names)
    for key, name in zip(keys, names, strict=True):
        if not name or not name.isprintable():
            raise InputError(
                f"{place}: the class {key!a} has no name that can be part of a prompt. Rename it, "
                f"or give it a name with {_OPTION}."
            )
    _refuse_equal_names(keys, names, place)
    return names


def read_as_number(number: str, known: Set[str]) -> str:
    """Return a message if YAML read a class as this number, such as 001 (as 1) or 010 (as 8).

    Args:
        number: the number that YAML read from a key without quotes.
        known: names or keys of all classes.

    Returns:
        The message; "" if no class was read as this number.
    """
    if number in known:
        return ""
    padded = sorted(
        key
        for key in known
        if re.fullmatch("0[0-9]{1,17}", key)
        # YAML 1.1 reads a number that begins with 0 as octal if its digits allow it.
        and int(number) in {int(key), int(key, 8) if re.fullmatch("[0-7]+", key) else -1}
    )
    if not padded:
        return ""
    return (
        f"YAML has read a key as the number {number}, and no class has that name. Put the name in "
        f'quotes, such as "{padded[0]}".'
    )


def _from_file(file: Path, keys: Sequence[str], names: Names) -> Names:
    values = read_values(file, "dataset.class_names")
    if isinstance(values, str):
        values = _of_lines(file, values)
    if isinstance(values, Mapping):
        known = set(keys)
        for key in values:
            if key is None or isinstance(key, bool):
                if str(key) not in known:
                    problem = f"YAML has read a key as {key}. Put the name in quotes."
                    raise InputError(f"{file}: {problem}")
            elif isinstance(key, int) and (meant := read_as_number(str(key), known)):
                raise InputError(f"{file}: {meant}")
        given = _by_key(file, values, keys)
        return Names(given.get(key, name) for key, name in zip(keys, names, strict=True))
    if not isinstance(values, list):
        raise InputError(f"{file}: must hold a mapping from classes to names, or a list of names.")
    if len(values) != len(keys):
        raise InputError(
            f"{file}: lists {len(values)} names, but there are {len(keys)} classes, from "
            f"{keys[0]!r} to {keys[-1]!r}. List one name for each, or write a mapping."
        )
    listed = Names(_name(file, key, name) for key, name in zip(keys, values, strict=True))
    listed.by_position = True
    return listed


def _by_key(file: Path, values: Mapping[Any, Any], keys: Sequence[str]) -> dict[str, str]:
    """Return the names of a mapping by the key of each class; 3 is the key of a class 3.0 too."""
    by_value: dict[Decimal, list[str]] = {}
    for key in keys:
        if (value := number_of(key)) is not None:
            by_value.setdefault(value, []).append(key)
    given: dict[str, str] = {}
    for written, name in values.items():
        key = composed(str(written))
        number = number_of(key)
        same = by_value.get(number, []) if number is not None else []
        if key not in keys and len(same) == 1:
            key = same[0]
        if key not in keys:
            raise InputError(
                f"{file}: {key[:80]!r} is not a class.{nearest(key, keys)} The classes are "
                f"{', '.join(map(repr, keys[:5]))}{', ...' if len(keys) > 5 else ''}."
            )
        if key in given:
            raise InputError(f"{file}: the class {key!r} has two names. Leave one of them out.")
        given[key] = _name(file, key, name)
    return given


def _of_lines(file: Path, text: str) -> Any:
    lines = text_lines(file, text)
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


def _refuse_equal_names(keys: Sequence[str], names: Sequence[str], place: Path) -> None:
    problem = problem_of_class_names(names, have_folders=False)
    if problem is None:
        return
    seen: dict[str, str] = {}
    for key, name in zip(keys, names, strict=True):
        first = seen.setdefault(readable(name).lower(), key)
        if first != key:
            raise InputError(
                f"{place}: the classes {first!r} and {key!r} are both {name!r} in a prompt. Give "
                f"them different names with {_OPTION}, or merge them."
            )
    raise InputError(f"{place}: {': '.join(problem)}.")
