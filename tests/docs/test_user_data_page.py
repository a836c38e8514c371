"""docs/user_data.md, followed to the letter: its files are written, its commands run in order."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers.command import ROOT, call, environment
from tests.helpers.made_datasets import write_class_folders, write_image

PAGE = (ROOT / "docs" / "user_data.md").read_text(encoding="utf-8")
HOME = "$HOME"
# The page's settings, but for how long they take.
SHORT = ["schedule.max_steps=1"]


class Block(NamedTuple):
    """What stands between two fences; `file` is the path that the text before it ends with."""

    kind: str
    text: str
    file: str


def blocks() -> list[Block]:
    found = []
    for match in re.finditer(r"(?ms)^```(\w*)\n(.*?)^```$", PAGE):
        name = re.search(r"`([^`]+)`:\s*$", PAGE[: match.start()])
        found.append(Block(match[1], match[2], name[1] if name else ""))
    return found


OWN_CARD = next(index for index, block in enumerate(blocks()) if "split.json" in block.file)


def write(block: Block, home: Path, checkout: Path) -> None:
    name = block.file.replace(HOME, str(home))
    file = Path(name) if Path(name).is_absolute() else checkout / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(block.text, encoding="utf-8")


def commands(block: Block, home: Path) -> list[list[str]]:
    return [shlex.split(line.replace(HOME, str(home))) for line in block.text.splitlines()]


def is_run(arguments: list[str]) -> bool:
    return arguments[0] == "-m" or "=" in arguments[0]


def test_every_block_is_known():
    """What is no command stands in a file that the text before it names; else nothing runs it."""
    kinds = [block.kind for block in blocks()]
    assert kinds.count("") == 2  # the folder that readers have, and the run that downloads weights
    assert {"sh", "json", "csv", "text", "yaml", ""} == set(kinds)
    assert all(bool(block.file) == (block.kind not in ("sh", "")) for block in blocks())
    assert PAGE.count("```") == 2 * len(blocks())
    first = next(block for block in blocks() if block.kind == "sh")
    assert len(first.text.splitlines()) <= 10


def test_the_page_can_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_class_folders(tmp_path / "photos", ("apple_tree", "oak", "scots_pine"), images=8)
    monkeypatch.chdir(tmp_path)
    shown = ""
    for block in blocks()[:OWN_CARD]:
        if block.file:
            write(block, tmp_path, tmp_path)
        if block.kind != "sh":
            continue
        for python, flag, program, *arguments in commands(block, tmp_path):
            assert (python, flag, program) == ("python", "-m", "so_clip")
            arguments, target = (
                (arguments[:-2], arguments[-1]) if ">" in arguments else (arguments, "")
            )
            short = SHORT if is_run(arguments) and "method=zero_shot" not in arguments else []
            outcome = call(*arguments, *short)
            assert outcome.code == 0, (arguments, outcome.err)
            if target:
                Path(target).write_text(outcome.out)
            shown = outcome.out
    assert "photos" in shown
    assert re.search(r"split=\w+, template=.*descriptions\.json", shown)
    assert "own.layout" not in shown
    assert "over 2 seeds" in shown
    assert re.search(r"\| 16 \| SO \|", shown)


def test_the_page_s_own_card_runs(tmp_path: Path):
    checkout, home = tmp_path / "checkout", tmp_path / "home"
    for folder in ("so_clip", "conf", "datasets"):
        shutil.copytree(ROOT / folder, checkout / folder, ignore=shutil.ignore_patterns("__pyc*"))
    for number, name in enumerate("abcd"):
        write_image(home / "data" / "mine" / "images" / f"{name}.png", number)
    last = blocks()[OWN_CARD:]
    for block in last[:-1]:
        write(block, home, checkout)
    for line in commands(last[-1], home):
        short = SHORT if is_run(line[3:]) else []
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
    assert os.path.getsize(folder / "metrics.json")  # noqa: PTH202
