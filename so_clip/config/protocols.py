"""On which classes a run trains, on what it is tested, and how uneven its few shots are: checks."""

from typing import Any

from so_clip.checks import number
from so_clip.data.base_to_new import BASE_TO_NEW
from so_clip.data.cards.card import USER_LAYOUTS, card_names
from so_clip.data.imbalance import LEAST_ALPHA, MOST_ALPHA
from so_clip.errors import InputError, nearest

ALL = "all"
PROTOCOLS = (ALL, BASE_TO_NEW)


def transfer_targets(value: Any, dataset: str) -> tuple[str, ...]:
    """Return the names of other datasets to test on, sorted, for their order is of no account.

    Raises:
        InputError: no list, a name without a card, the run's own dataset, or one named twice.
    """
    if not isinstance(value, list):
        raise InputError(
            f"transfer={value}: must be a list of datasets, such as [dtd,imagenet_v2]."
        )
    known = card_names() if value else []
    for name in value:
        if name not in known and str(name).partition(":")[0] not in USER_LAYOUTS:
            raise InputError(
                f"transfer={name}: there is no dataset of that name.{nearest(str(name), known)} "
                f"Known: {', '.join(known)}; your own images are folder:FOLDER or csv:FOLDER."
            )
        if name == dataset or value.count(name) > 1:
            where = "the run's own dataset" if name == dataset else "there twice"
            raise InputError(f"transfer={value}: {name} is {where}. Leave it out.")
    return tuple(sorted(value))


def imbalance_alpha(value: Any) -> float | None:
    """Return the alpha of class_counts, or None for None; InputError for one out of its range."""
    if value is None:
        return None
    alpha = number("imbalance", value)
    if not LEAST_ALPHA <= alpha <= MOST_ALPHA:
        raise InputError(
            f"imbalance={value}: must be from {LEAST_ALPHA:g} (very uneven) to {MOST_ALPHA:g} "
            "(even), or null."
        )
    return alpha
