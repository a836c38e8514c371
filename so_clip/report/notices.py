"""Warnings and log messages of libraries as remarks: each is shown once, on one line."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class _Collector(logging.Handler):
    def __init__(self, texts: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextmanager
def collected(library: str, remarks: list[str], ignored: tuple[str, ...] = ()) -> Iterator[None]:
    """Add what a library warns about in this block to `remarks`, instead of printing it.

    Args:
        library: the name of its Python package, which begins each remark.
        remarks: gets each different message once.
        ignored: messages that begin with one of these texts are dropped.
    """
    texts: list[str] = []
    logger, collector = logging.getLogger(library), _Collector(texts)
    propagates, level = logger.propagate, logger.level
    logger.addHandler(collector)
    logger.propagate = False
    logger.setLevel(logging.WARNING)  # another level can be set above it
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            yield
        texts += [str(warning.message) for warning in caught]
    finally:
        logger.removeHandler(collector)
        logger.propagate = propagates
        logger.setLevel(level)
        told = dict.fromkeys(text for text in texts if not text.startswith(ignored))
        lines = (f"{library}: {' '.join(text.split())}" for text in told)
        remarks += [line for line in lines if line not in remarks]
