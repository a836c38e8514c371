"""Threads that decode images: results come in order, and an error cancels the rest."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def _pool(workers: int | None) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def in_threads(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    title: str,
    workers: int | None = None,
    **bar: Any,
) -> Generator[Result, None, None]:
    """Yield the results of a function for all items, and show a progress bar on a terminal.

    Args:
        function: it must allow calls from several threads.
        items: its arguments.
        title: of the bar.
        workers: the number of threads; None: Python's default for the machine.
        bar: more options of tqdm.
    """
    with _pool(workers) as pool:
        results = pool.map(function, items)
        yield from tqdm(results, title, len(items), **{"disable": None} | bar)


def groups_ahead(
    function: Callable[[Item], Result],
    groups: Iterable[Iterable[Item]],
    workers: int,
    ahead: int = 1,
) -> Generator[list[Result], None, None]:
    """Yield the results of each group, while threads work on the next groups.

    Args:
        function: it must allow calls from several threads.
        groups: its arguments.
        workers: the number of threads; 0: the calling thread works, and no group is ahead.
        ahead: the number of groups in work while a group is in use.
    """
    if not workers:
        yield from ([function(item) for item in group] for group in groups)
        return
    pending: deque[Iterator[Result]] = deque()
    with _pool(workers) as pool:
        for group in groups:
            pending.append(pool.map(function, group))
            if len(pending) > ahead:
                yield list(pending.popleft())
        while pending:
            yield list(pending.popleft())
