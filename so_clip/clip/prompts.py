"""Prompts from class names."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from so_clip.data.cards.card import DatasetCard
from so_clip.data.choice import TEMPLATES
from so_clip.errors import InputError


class Prompts(NamedTuple):
    """The prompts of all classes."""

    texts: list[str]  # the prompts of one class after those of another
    per_class: tuple[int, ...]  # the number of prompts of each class
    templates: tuple[str, ...]  # empty if each class has its own descriptions


def templated(class_names: Sequence[str], templates: Sequence[str]) -> Prompts:
    """Return the prompts of each class name from templates; see class_prompts."""
    texts = class_prompts(class_names, templates)
    return Prompts(texts, (len(templates),) * len(class_names), tuple(templates))


def described(class_names: Sequence[str], descriptions: Mapping[str, Sequence[str]]) -> Prompts:
    """Return the descriptions of each class as prompts; their numbers may differ."""
    by_class = [descriptions[name] for name in class_names]
    return Prompts([text for texts in by_class for text in texts], tuple(map(len, by_class)), ())


def class_prompts(class_names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Return the prompts class by class: each template with the class name in place of {}.

    In names, "_" becomes a space.

    Raises:
        InputError: a template does not have exactly one {}.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise InputError(
                f"template={template!r}: needs exactly one {{}} for the class name, as in "
                "'a photo of a {}.'."
            )
    parts = [template.split("{}") for template in templates]
    names = [name.replace("_", " ") for name in class_names]
    return [before + name + after for name in names for before, after in parts]


def chosen_prompts(template: str, class_names: Sequence[str], card: DatasetCard) -> Prompts:
    """Return the prompts of classes: the user's descriptions of them, or filled templates.

    Raises:
        InputError: the card has no templates of that name.
    """
    if card.descriptions is not None:
        return described(class_names, card.descriptions)
    templates = card.template_sets
    if template in templates:
        return templated(class_names, templates[template])
    if template in TEMPLATES:
        raise InputError(
            f"template={template}: the dataset's card has none under templates. It has "
            f"{', '.join(templates)}; any text with one {{}} for the class name works too."
        )
    return templated(class_names, [template])
