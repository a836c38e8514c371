"""Progress of the report's stages: a bar on a terminal, a line at intervals elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from so_clip.errors import say

T = TypeVar("T")
# Seconds between two lines in a pipe or file. A short report prints none.
LINE_SECONDS = 10.0


def watched(items: Iterable[T], stage: str, count: int | None = None) -> Iterator[T]:
    """Yield the items of a stage and show on stderr how many are done.

    Args:
        items: what the stage works on.
        stage: the name of the stage.
        count: the number of items, if `items` has no length.
    """
    if sys.stderr.isatty():
        yield from tqdm(items, stage, count, dynamic_ncols=True, leave=False)
        return
    count = len(items) if count is None else count  # type: ignore[arg-type]
    printed_at = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - printed_at >= LINE_SECONDS:
            say(f"{stage}: {done:,} of {count:,}")
            printed_at = time.monotonic()
        yield item
