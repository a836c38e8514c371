"""Progress bars of the report's stages."""

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def watched(items: Iterable[T], stage: str, total: int | None = None) -> Iterable[T]:
    """Return the items, with a progress bar on stderr if stderr is a terminal.

    Args:
        items: the items of a stage that may take long.
        stage: the name of the stage.
        total: the number of items, if they have no length.
    """
    return tqdm(items, stage, total, disable=None, dynamic_ncols=True, leave=False)
