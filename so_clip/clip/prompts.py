"""From class names to prompts."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from so_clip.errors import InputError


class Prompts(NamedTuple):
    """The prompts of classes: a class's one after the other, how many each has, and from what.

    `templates` are those that all were made from; none where each class has its own descriptions.
    """

    texts: list[str]
    per_class: tuple[int, ...]
    templates: tuple[str, ...]


def templated(class_names: Sequence[str], templates: Sequence[str]) -> Prompts:
    """Return the prompts that templates make of each name; see class_prompts."""
    texts = class_prompts(class_names, templates)
    return Prompts(texts, (len(templates),) * len(class_names), tuple(templates))


def described(class_names: Sequence[str], descriptions: Mapping[str, Sequence[str]]) -> Prompts:
    """Return each class's own prompts, of which there may be other numbers."""
    own = [descriptions[name] for name in class_names]
    return Prompts([text for texts in own for text in texts], tuple(map(len, own)), ())


def class_prompts(class_names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Return prompts, a class after the other: templates with its name in place of {}.

    In names, "_" is read as a space.

    Raises:
        InputError: a template does not have exactly one {}.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise InputError(
                f"template={template!r}: needs exactly one {{}}, where the class name goes, as in "
                "'a photo of a {}.'."
            )
    parts = [template.split("{}") for template in templates]
    names = [name.replace("_", " ") for name in class_names]
    return [before + name + after for name in names for before, after in parts]
