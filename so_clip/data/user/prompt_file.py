"""Prompts from a file: templates for all classes, or descriptions of each of them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from so_clip.data.plain_files import read_values, shortened, text_lines
from so_clip.data.user.class_names import read_as_number, readable
from so_clip.errors import InputError, nearest, say

SUFFIXES = (".txt", ".json", ".yaml", ".yml")
# The key of prompts for all classes that have no key of their own.
ALL_OTHERS = "*"
# Far more than anyone writes. Each prompt needs a pass through the text tower.
MAX_PROMPTS = 1000


@dataclass(frozen=True)
class PromptFile:
    """The content of a file of prompts: either `templates`, or `descriptions` by class.

    A description may have one {} for the class name. `numbers` are the keys that YAML has read as
    whole numbers.
    """

    file: Path
    templates: tuple[str, ...] = ()
    descriptions: Mapping[str, tuple[str, ...]] | None = None
    numbers: frozenset[str] = frozenset()

    def of(
        self, names: Sequence[str], keys: Sequence[str] = ()
    ) -> dict[str, tuple[str, ...]] | None:
        """Return the prompts of each class by its name; None if the file holds templates.

        Prompts of unknown classes are noted on stderr, once.

        Args:
            names: the class names. Capitals, _ and - are ignored.
            keys: the other name of each class: its folder, or its label.

        Raises:
            InputError: a class has no prompts, the file has prompts of no class, or YAML has read
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
        found, missing, used = {}, [], False
        for name, key in zip(names, keys or names, strict=True):
            specific = given.get(_folded(name)) or given.get(_folded(key))
            used = used or specific is not None
            prompts = specific or others
            if prompts is None:
                missing.append(name)
                continue
            found[name] = tuple(prompt.replace("{}", name.replace("_", " ")) for prompt in prompts)
        if missing or not used:
            name = missing[0] if missing else names[0]
            problem = f"it has no prompts for {len(missing) or len(names)} of {len(names)} classes"
            raise InputError(
                f"template={self.file}: {problem}, such as {name!r}.{nearest(name, given)} Add "
                f'them, or prompts for all others by the key "{ALL_OTHERS}".'
            )
        folded = {ALL_OTHERS, *map(_folded, known)}
        unknown = [key for key in self.descriptions if _folded(key) not in folded]
        if unknown:
            few = " ".join(f"{key!r}.{nearest(key, names)}" for key in unknown[:5])
            _say_once(f"template={self.file}: {len(unknown)} keys are not classes: {few}")
        return found


@cache
def _say_once(message: str) -> None:
    say(message)


def is_prompt_file(template: str) -> bool:
    """Return whether the value of `template` has the suffix of a file of prompts."""
    return "{}" not in template and template.lower().endswith(SUFFIXES)


def read_prompt_file(file: Path) -> PromptFile:
    """Read templates or class descriptions.

    Templates: text with one template per line (lines that begin with # are comments), or a JSON
    or YAML list. Descriptions: a JSON or YAML mapping from each class to a prompt or a list of
    prompts.

    Raises:
        InputError: no such file, or other content; the message names the place in the file.
    """
    values = read_values(file, "template")
    if isinstance(values, str):
        values = [line for line in text_lines(file, values) if not line.startswith("#")]
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
                f"name, not {shortened(text)}."
            )
    return PromptFile(file, templates=tuple(values))


def _descriptions(file: Path, values: Mapping[Any, Any]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    folded: dict[str, str] = {}
    for name, given in values.items():
        place = f"template={file}: {name!r}"
        # YAML reads 3 as a number and yes as true.
        if not isinstance(name, (str, int)) or isinstance(name, bool):
            raise InputError(f"{place}: is not a class name. Put it in quotes.")
        first = folded.setdefault(_folded(str(name)), str(name))
        if first != str(name):
            raise InputError(f"{place}: repeats the class {first!r}. Merge them.")
        prompts = [given] if isinstance(given, str) else given
        if not isinstance(prompts, list) or not prompts:
            raise InputError(
                f"{place}: must have a prompt or a list of them, not {shortened(given)}."
            )
        _check_count(place, prompts)
        for number, text in enumerate(prompts, start=1):
            if not isinstance(text, str) or not re.fullmatch(r"[^{}]*(\{\})?[^{}]*", text.strip()):
                raise InputError(
                    f"{place}: prompt {number} must be text, with at most one {{}} for the class "
                    f"name, not {shortened(text)}."
                )
            if not text.strip():
                raise InputError(f"{place}: prompt {number} is empty. Delete it.")
        found[str(name)] = tuple(" ".join(text.split()) for text in prompts)
    return found


def _check_count(place: str, prompts: Sequence[Any]) -> None:
    if len(prompts) > MAX_PROMPTS:
        raise InputError(f"{place}: holds {len(prompts)} prompts, more than {MAX_PROMPTS}.")


def _folded(name: str) -> str:
    return readable(name).casefold()
