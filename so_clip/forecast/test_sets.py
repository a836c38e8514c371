"""The training classes and test sets of a run, by the sizes on the datasets' cards."""

from dataclasses import replace
from typing import NamedTuple

from so_clip.config.settings import Settings
from so_clip.data.base_to_new import base_count
from so_clip.data.cards.card import DatasetCard, check_trainable
from so_clip.data.find import find_card


class TestSetSize(NamedTuple):
    """The number of images of a test set, and the number of candidate classes."""

    images: int
    classes: int


def training_card(settings: Settings, card: DatasetCard) -> DatasetCard:
    """Return the card with only the classes that the run trains on.

    Raises:
        InputError: the dataset has only test images.
    """
    if settings.adapts:
        check_trainable(card)
    if not settings.data.base_to_new:
        return card
    count = base_count(len(card.class_names))
    sizes = card.sizes | {"classes": count}
    return replace(card, class_names=card.class_names[:count], sizes=sizes)


def test_set_sizes(settings: Settings, card: DatasetCard) -> list[TestSetSize]:
    """Return the sizes of all test sets of a run, its own first.

    Cards do not have the number of test images of the base classes, so all classes count as equal.
    """
    images, classes = card.sizes["test"], card.sizes["classes"]
    sizes = [TestSetSize(images, classes)]
    if settings.data.base_to_new:
        base = base_count(classes)
        base_images = images * base // classes
        sizes = [
            TestSetSize(base_images, base),
            TestSetSize(images - base_images, classes - base),
        ]
    data = settings.data
    others = [
        find_card(name, data.data_root, cards_dir=data.cards_dir).sizes for name in data.transfer
    ]
    return sizes + [TestSetSize(other["test"], other["classes"]) for other in others]
