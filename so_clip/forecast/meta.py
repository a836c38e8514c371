"""The largest task of a meta-training, by the sizes on the cards of its sources, without torch."""

from dataclasses import dataclass

from so_clip.data.base_to_new import base_count
from so_clip.data.find import find_card
from so_clip.meta.settings import MetaSettings


@dataclass(frozen=True)
class TaskSize:
    """The sizes of a task: classes, and few-shot and query images in all."""

    ways: int
    few_shot: int
    queries: int


def largest_task(settings: MetaSettings) -> TaskSize:
    """Return the sizes of the largest task that the sampler can draw from the sources.

    The cards have no number of images of a class, so every class counts as large enough.
    """
    data, episodes = settings.data, settings.episodes
    cards = [
        find_card(name, data.data_root, cards_dir=data.cards_dir, template=data.template)
        for name in data.sources
    ]
    most_classes = max(base_count(card.sizes["classes"]) for card in cards)
    ways = min(episodes.most_ways(settings.shots), most_classes)
    shots = settings.shots
    few_shot = episodes.images if shots is None else ways * shots
    return TaskSize(ways, few_shot, ways * episodes.queries)
