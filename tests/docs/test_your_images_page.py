"""docs/your_images.md can be followed: its files are written and its commands run in order."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.command import ROOT, environment
from tests.helpers.doc_pages import HOME, ONE_STEP, blocks, follow, is_run, lines
from tests.helpers.made_datasets import write_class_folders, write_image

PAGE = ROOT / "docs" / "your_images.md"

pytestmark = pytest.mark.slow


def test_the_page_leads_from_a_folder_of_images_to_a_table(tmp_path: Path, monkeypatch):
    write_class_folders(tmp_path / "photos", ("apple_tree", "oak", "scots_pine"), images=8)
    monkeypatch.chdir(tmp_path)
    shown = follow(PAGE, tmp_path)[-1].out
    assert "photos" in shown
    assert re.search(r"split=\w+, template=.*descriptions\.json", shown)
    assert "own.layout" not in shown
    assert re.search(r"over \d seeds", shown)
    assert re.search(r"\| 16 +\| SO\b", shown)


def test_the_card_of_the_page_runs(tmp_path: Path):
    checkout, home = tmp_path / "checkout", tmp_path / "home"
    for folder in ("so_clip", "conf", "datasets"):
        shutil.copytree(ROOT / folder, checkout / folder, ignore=shutil.ignore_patterns("__pyc*"))
    for number, name in enumerate("abcd"):
        write_image(home / "data" / "mine" / "images" / f"{name}.png", number)
    found = blocks(PAGE)
    split, card, commands = found[-3:]
    for block in (split, card):
        name = block.file.replace(HOME, str(home))
        file = checkout / name  # an absolute name stays as it is
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.text, encoding="utf-8")
    for line in lines(commands, str(home)):
        short = [ONE_STEP] if is_run(line[3:]) else []
        done = subprocess.run(
            [sys.executable, *line[1:], *short],
            cwd=checkout,
            env=environment() | {"PYTHONPATH": str(checkout)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    (folder,) = (checkout / "results" / "runs").glob("mine-tiny-so-1shot-*")
    assert (folder / "metrics.json").stat().st_size
