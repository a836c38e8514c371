"""Checks of single values: a value is returned in its type, or refused with its name."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from so_clip.checks import number, one_of, optional_path, path, unicode_text, whole
from so_clip.errors import InputError


def test_good_values_come_back_in_their_type(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert whole("shots", 4, 1) == 4
    assert isinstance(number("lr", 1), float)
    assert one_of("order", "b", ("a", "b")) == "b"
    assert path("out", "~/x") == tmp_path / "x"
    assert path("out", 2024) == Path("2024")
    assert optional_path("out", None) is None
    assert unicode_text("template", "naïve {}") == "naïve {}"


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: whole("shots", 0, 1), "shots=0: must be 1 or more"),
    (lambda: whole("shots", 9, 1, 8), "shots=9: must be 8 or less"),
    (lambda: whole("shots", True, 1), "shots=True: must be a whole number"),
    (lambda: whole("shots", 2.0, 1), "shots=2.0: must be a whole number"),
    (lambda: number("lr", math.nan), "lr=nan: must be a finite number"),
    (lambda: number("lr", "fast"), "lr=fast: must be a finite number"),
    (lambda: one_of("order", "prune", ("prune_first", "x")), "Did you mean 'prune_first'?"),
    (lambda: path("out", ""), "out is empty"),
    (lambda: path("out", False), "out=False: must be a path"),
    (lambda: path("out", "a\0b"), "NUL"),
    (lambda: path("out", "~no-such-user-here/x"), "there is no such home"),
    (lambda: unicode_text("template", "\udc80"), "is not valid Unicode"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_bad_values_are_refused_in_words(call, message):
    with pytest.raises(InputError) as refusal:
        call()
    assert message in str(refusal.value)
