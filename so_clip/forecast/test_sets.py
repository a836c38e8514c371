"""What a run trains on and what it tests, by the sizes on the datasets' cards."""

from dataclasses import replace
from typing import NamedTuple

from so_clip.config.settings import Settings
from so_clip.data.base_to_new import base_count
from so_clip.data.cards.card import DatasetCard, check_trainable
from so_clip.data.find import find_card


class Tested(NamedTuple):
    """Images of a test set, and the classes among which each is looked for."""

    images: int
    classes: int


def training_card(settings: Settings, card: DatasetCard) -> DatasetCard:
    """Return the card with those classes alone that the run trains on.

    Raises:
        InputError: the dataset has test images alone.
    """
    if settings.adapts:
        check_trainable(card)
    if not settings.data.base_to_new:
        return card
    count = base_count(len(card.class_names))
    sizes = card.sizes | {"classes": count}
    return replace(card, class_names=card.class_names[:count], sizes=sizes)


def tested_sizes(settings: Settings, card: DatasetCard) -> list[Tested]:
    """Return the sizes of all test sets of a run, its own first.

    How many test images the base classes have, no card says: each class counts alike.
    """
    images, classes = card.sizes["test"], card.sizes["classes"]
    sizes = [Tested(images, classes)]
    if settings.data.base_to_new:
        base = base_count(classes)
        of_base = images * base // classes
        sizes = [Tested(of_base, base), Tested(images - of_base, classes - base)]
    others = [find_card(name, settings.data.data_root).sizes for name in settings.data.transfer]
    return sizes + [Tested(each["test"], each["classes"]) for each in others]
