"""The nearest names that messages offer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from so_clip.errors import InputError, RunFailed, nearest

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
