"""docs/python.md and the Python example of README.md run as they stand, in the page's order.

The folder of images is generated, and the tiny backbone stands for ViT-B/16. It takes three steps
where the page has the default schedule: the test checks the calls, not the score.
"""

import shutil
from pathlib import Path

import pytest

from tests.helpers.command import ROOT, call
from tests.helpers.doc_pages import README, blocks, lines
from tests.helpers.made_datasets import write_class_folders


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    write_class_folders(tmp_path / "photos", ("apple_tree", "oak", "scots_pine"), images=8)
    for name in ("a", "b"):
        shutil.copy(tmp_path / "photos" / "oak" / "0.png", tmp_path / f"{name}.jpg")
    return tmp_path / "photos"


def with_tiny(text: str) -> str:
    return text.replace('"vit_b16"', '"tiny"').replace(
        'method="so")', 'method="so", schedule={"max_steps": 3})'
    )


@pytest.mark.slow
def test_every_block_of_the_page_runs_in_order(photos, tmp_path, capsys):
    scope: dict[str, object] = {}
    demo = finished = None
    for block in blocks(ROOT / "docs" / "python.md"):
        if block.kind == "sh":
            for line in lines(block, str(tmp_path)):
                assert call(*line[3:]).code == 0
            finished = list((tmp_path / "results" / "runs").glob("*/metrics.json"))
        elif block.kind == "python":
            exec(with_tiny(block.text), scope)
            demo = demo or (scope["result"] if "experiment=" in block.text else None)
    # The numbers of `make demo` in README.md.
    assert round(demo.zero_shot_accuracy_percent, 2) == 61.30
    assert round(demo.accuracy_percent, 2) == pytest.approx(81.11, abs=1)
    assert [scope["result"].folder] == [file.parent for file in finished]
    shown = capsys.readouterr().out
    assert " % -> " in shown
    assert "a.jpg " in shown


def test_the_example_of_the_readme_runs(photos, tmp_path):
    (block,) = (block for block in blocks(README) if block.kind == "python")
    exec(with_tiny(block.text), {})
    assert (tmp_path / "mine.safetensors").is_file()
