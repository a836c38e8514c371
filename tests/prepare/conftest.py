"""The server and the data root of the tests of prepare."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.file_server import Server, running


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root that does not exist yet. The folder of cards is beside it."""
    return tmp_path / "data"
