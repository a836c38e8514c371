"""The server and the data root that the tests of prepare share."""

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
    """A data root that does not exist yet; the folder of cards lies beside it."""
    return tmp_path / "data"
