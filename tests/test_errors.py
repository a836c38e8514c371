"""Messages: the nearest names that they offer, and how they are written."""

import io
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from so_clip.errors import InputError, RunFailed, nearest, say

DATASETS = ["caltech101", "dtd", "eurosat", "oxford_flowers", "oxford_pets"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("eurosta", " Did you mean 'eurosat'?"),
        ("EuroSAT", " Did you mean 'eurosat'?"),
        ("oxford_flower", " Did you mean 'oxford_flowers' or 'oxford_pets'?"),
        ("oxford_pet", " Did you mean 'oxford_pets' or 'oxford_flowers'?"),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_nearest_names(name, hint):
    assert nearest(name, DATASETS) == hint


def test_at_most_two_names_are_offered_and_case_does_not_matter():
    assert nearest("rn50x5", ["RN101", "RN50x16", "RN50x4", "RN50x64"]).count("'RN50x") == 2


@given(st.text(), st.lists(st.text()))
def test_a_hint_names_known_names_only(name, known):
    hint = nearest(name, known)
    assert hint == "" or any(repr(item) in hint for item in known)


def test_bad_input_and_failed_runs_have_different_exit_codes():
    # The first ends with code 2, the second with code 1.
    assert issubclass(InputError, ValueError)
    assert not issubclass(RunFailed, InputError)


def test_a_message_and_its_line_break_are_one_write(monkeypatch):
    """Processes share a terminal or a pipe. Another one must not write into a message."""

    class Writes(io.RawIOBase):
        def __init__(self) -> None:
            self.texts: list[bytes] = []

        def writable(self) -> bool:
            return True

        def write(self, text: Any) -> int:
            self.texts.append(bytes(text))
            return len(text)

    writes = Writes()
    stderr = io.TextIOWrapper(io.BufferedWriter(writes), line_buffering=True)
    monkeypatch.setattr(sys, "stderr", stderr)
    say("two lines:\n  the second")
    assert writes.texts == [b"so_clip: two lines:\n  the second\n"]
