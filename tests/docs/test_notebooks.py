"""The notebooks run from the top, and print what is in the files."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from scripts.docs_site.compare import difference, shown
from tests.helpers.command import PATIENCE_SECONDS, ROOT, environment
from tests.helpers.page_home import write_home

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def printed(cell: nbformat.NotebookNode, home: str = "") -> str:
    """Return all text that a cell has printed or returned."""
    parts = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            parts.append(output.text)
        elif "text/plain" in output.get("data", {}):
            parts.append(f"{output.data['text/plain']}\n")
    return shown("".join(parts), home)


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=[file.stem for file in NOTEBOOKS])
def test_a_notebook_prints_what_is_in_its_file(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = write_home(tmp_path / "home")
    for name, value in (environment() | {"HOME": str(home), "HF_HUB_OFFLINE": "1"}).items():
        monkeypatch.setenv(name, value)
    old = nbformat.read(file, as_version=4)
    new = nbformat.read(file, as_version=4)
    resources = {"metadata": {"path": str(home)}}
    NotebookClient(
        new, timeout=PATIENCE_SECONDS, kernel_name="python3", resources=resources
    ).execute()
    code = [cell for cell in old.cells if cell.cell_type == "code"]
    assert any(printed(cell) for cell in code)
    for number, (before, after) in enumerate(zip(old.cells, new.cells, strict=True)):
        if before.cell_type == "code":
            different = difference(printed(before), printed(after, str(home)))
            assert not different, f"{file.name}, cell {number}: {different}"


def test_there_are_two_notebooks() -> None:
    assert {"tour", "so_on_any_model"} <= {file.stem for file in NOTEBOOKS}
