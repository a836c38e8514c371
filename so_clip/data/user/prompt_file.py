"""Prompts from a file: templates for all classes, or descriptions of each of them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from so_clip.data.user.class_names import read_as_number, readable
from so_clip.data.user.text_files import lines_of, read_values
from so_clip.errors import InputError, nearest, say

SUFFIXES = (".txt", ".json", ".yaml", ".yml")
# The key of prompts for all classes that have no key of their own.
ALL_OTHERS = "*"
# Far beyond what anyone writes; each is a pass through the text tower.
MAX_PROMPTS = 1000


@dataclass(frozen=True)
class PromptFile:
    """What a file of prompts holds: `templates`, or `descriptions` by class, never both.

    A description may have one {} for the class's name. `numbers` are the classes that YAML has
    read as whole numbers.
    """

    file: Path
    templates: tuple[str, ...] = ()
    descriptions: Mapping[str, tuple[str, ...]] | None = None
    numbers: frozenset[str] = frozenset()

    def of(
        self, names: Sequence[str], keys: Sequence[str] = ()
    ) -> dict[str, tuple[str, ...]] | None:
        """Return the prompts of each class by its name; None where these are templates.

        Prompts of classes that are not there are noted on stderr, once.

        Args:
            names: of the classes. Capitals, _ and - are of no account.
            keys: what else each is called: its folder, or its label.

        Raises:
            InputError: a class has no prompts, the file has none of the classes, or YAML has read
                a class such as 010 as a number.
        """
        if self.descriptions is None:
            return None
        known = {*names, *keys}
        for number in sorted(self.numbers):
            if meant := read_as_number(number, known):
                raise InputError(f"template={self.file}: {meant}")
        given = {_folded(key): prompts for key, prompts in self.descriptions.items()}
        others = given.pop(ALL_OTHERS, None)
        found, lacking, used = {}, [], False
        for name, key in zip(names, keys or names, strict=True):
            own = given.get(_folded(name)) or given.get(_folded(key))
            used = used or own is not None
            prompts = own or others
            if prompts is None:
                lacking.append(name)
                continue
            found[name] = tuple(prompt.replace("{}", name.replace("_", " ")) for prompt in prompts)
        if lacking or not used:
            name = lacking[0] if lacking else names[0]
            problem = f"{len(lacking) or len(names)} of {len(names)} classes have no prompts in it"
            raise InputError(
                f"template={self.file}: {problem}, such as {name!r}.{nearest(name, given)} Add "
                f'them, or prompts for all others by the key "{ALL_OTHERS}".'
            )
        there = {ALL_OTHERS, *map(_folded, known)}
        unknown = [key for key in self.descriptions if _folded(key) not in there]
        if unknown:
            few = " ".join(f"{key!r}.{nearest(key, names)}" for key in unknown[:5])
            _say_once(
                f"template={self.file}: has prompts of {len(unknown)} that are no class: {few}"
            )
        return found


@cache
def _say_once(message: str) -> None:
    say(message)


def is_prompt_file(template: str) -> bool:
    """Whether the value of `template` names a file, by its suffix."""
    return "{}" not in template and template.lower().endswith(SUFFIXES)


def read_prompt_file(file: Path) -> PromptFile:
    """Read templates or class descriptions.

    Templates: text with one a line (lines that begin with # are none), or a JSON or YAML list.
    Descriptions: a JSON or YAML mapping from each class to a prompt or a list of them.

    Raises:
        InputError: no such file, or one that holds neither; the message names the place in it.
    """
    values = read_values(file, "template")
    if isinstance(values, str):
        values = [line for line in lines_of(values) if not line.startswith("#")]
    if isinstance(values, Mapping):
        numbers = frozenset(str(key) for key in values if isinstance(key, int))
        return PromptFile(file, descriptions=_descriptions(file, values), numbers=numbers)
    if not isinstance(values, list) or not values:
        raise InputError(
            f"template={file}: must hold templates, or a mapping from each class to its prompts."
        )
    _check_count(f"template={file}", values)
    for number, text in enumerate(values, start=1):
        if not isinstance(text, str) or not re.fullmatch(r"[^{}]*\{\}[^{}]*", text):
            raise InputError(
                f"template={file}: template {number} must be text with one {{}} for the class "
                f"name, not {_short(text)}."
            )
    return PromptFile(file, templates=tuple(values))


def _descriptions(file: Path, values: Mapping[Any, Any]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    folded: dict[str, str] = {}
    for name, given in values.items():
        place = f"template={file}: {name!r}"
        # YAML reads 3 and yes as no text.
        if not isinstance(name, (str, int)) or isinstance(name, bool):
            raise InputError(f"{place}: is no class's name. Put it in quotes.")
        first = folded.setdefault(_folded(str(name)), str(name))
        if first != str(name):
            raise InputError(f"{place}: is the class {first!r} once more. Make them one.")
        prompts = [given] if isinstance(given, str) else given
        if not isinstance(prompts, list) or not prompts:
            raise InputError(f"{place}: must have a prompt or a list of them, not {_short(given)}.")
        _check_count(place, prompts)
        for number, text in enumerate(prompts, start=1):
            if not isinstance(text, str) or not re.fullmatch(r"[^{}]*(\{\})?[^{}]*", text.strip()):
                raise InputError(
                    f"{place}: prompt {number} must be text, with {{}} for the class's name at "
                    f"most once, not {_short(text)}."
                )
            if not text.strip():
                raise InputError(f"{place}: prompt {number} is empty. Drop it.")
        found[str(name)] = tuple(" ".join(text.split()) for text in prompts)
    return found


def _check_count(place: str, prompts: Sequence[Any]) -> None:
    if len(prompts) > MAX_PROMPTS:
        raise InputError(f"{place}: holds {len(prompts)} prompts, more than {MAX_PROMPTS}.")


def _folded(name: str) -> str:
    return readable(name).casefold()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}…"
