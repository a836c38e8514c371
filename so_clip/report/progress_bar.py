"""How far the report is, for who waits for it."""

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def watched(items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """Return the items, with a bar on stderr as they are gone through; on a terminal only.

    Args:
        items: of a stage that may take long.
        what: the stage.
        total: how many items there are, where they cannot be counted.
    """
    return tqdm(items, what, total, disable=None, dynamic_ncols=True, leave=False)
