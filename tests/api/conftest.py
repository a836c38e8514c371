"""The CLIP that the tests of the Python API adapt."""

import pytest

import so_clip
from so_clip.api.clip import Clip


@pytest.fixture(scope="module")
def clip() -> Clip:
    return so_clip.load("tiny", device="cpu")
