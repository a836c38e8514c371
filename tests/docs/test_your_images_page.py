"""docs/your_images.md can be followed: its files are written and its commands run in order."""

import re
from pathlib import Path

import pytest

from tests.helpers.command import ROOT
from tests.helpers.doc_pages import follow
from tests.helpers.made_datasets import write_class_folders, write_image

PAGE = ROOT / "docs" / "your_images.md"

pytestmark = pytest.mark.slow


def test_the_page_leads_from_a_folder_of_images_to_a_table(tmp_path: Path, monkeypatch):
    names = ("apple_tree", "oak", "scots_pine")
    write_class_folders(tmp_path / "photos", names, images=8)
    for number in (1, 2, 3):
        write_class_folders(tmp_path / "folds" / f"fold{number}", names)
    for number, name in enumerate("abcd"):
        write_image(tmp_path / "data" / "mine" / "images" / f"{name}.png", number)
    monkeypatch.chdir(tmp_path)
    shown = follow(PAGE, tmp_path)
    # Sweeps end with a table too; the last one with descriptions is that of all runs.
    table = [step.out for step in shown if re.search(r"template=.*descriptions\.json", step.out)][
        -1
    ]
    assert "photos" in table
    assert re.search(r"split=[^,|]+, template=.*descriptions\.json", table), table
    assert "own.layout" not in table
    assert re.search(r"over \d seeds", table)
    assert re.search(r"\| 16 +\| SO\b", table)
    folders = list((tmp_path / "results" / "runs").glob("mine-tiny-*-1shot-*"))
    assert {folder.name.split("-")[2] for folder in folders} == {"so", "adamw"}
