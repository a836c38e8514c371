"""Runs the commands of README.md and docs/."""

import re
from collections.abc import Sequence
from pathlib import Path

from scripts.docs_site.blocks import HOME, blocks, is_run, lines, so_clip_arguments
from tests.helpers.command import ROOT, Outcome, call

README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
ALL_PAGES = [README, *PAGES, ROOT / "results" / "README.md"]
# Runs of a page need one step: the test checks the command, not the score.
ONE_STEP = "schedule.max_steps=1"


def can_run(line: Sequence[str]) -> bool:
    """Tell whether a command runs here without a network and without published datasets."""
    arguments = so_clip_arguments(line)
    if arguments is None or line[0] == "torchrun":
        return False
    published = [word for word in arguments if re.match(r"experiment=(?!demo$)", word)]
    return arguments[0] != "prepare" and not published


def follow(page: Path, home: Path) -> list[Outcome]:
    """Write the files of a page, run its commands in order and return their outcomes.

    Every backbone becomes the embedded one and a run takes one step. All files are below $HOME,
    also relative ones.

    Args:
        page: of the documentation.
        home: stands for $HOME.
    """
    outcomes = []
    for block in blocks(page):
        if block.file:
            _write(home / block.file.replace(HOME, str(home)), block.text)
        if block.kind == "sh":
            outcomes += [_run(line) for line in lines(block, str(home)) if can_run(line)]
    return outcomes


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def _run(line: list[str]) -> Outcome:
    """Run one command in this process; what the page sends to a file is written there."""
    target = line[line.index(">") + 1] if ">" in line else ""
    arguments = line[3 : line.index(">")] if target else line[3:]
    outcome = call(*small(_expanded(arguments)))
    # The doctor sees that stand-ins are smaller than the published datasets.
    allowed = (0, 1) if arguments[0] == "doctor" else (0,)
    assert outcome.code in allowed, (arguments, outcome.err)
    if target:
        _write(Path(target), outcome.out)
    return outcome


def _expanded(arguments: Sequence[str]) -> list[str]:
    """Return arguments with the run folders of a pattern in its place, as the shell does it."""
    found = [
        sorted(map(str, Path().glob(word))) if word.startswith("results/") else []
        for word in arguments
    ]
    return [name for word, names in zip(arguments, found, strict=True) for name in names or [word]]


def small(arguments: Sequence[str]) -> list[str]:
    """Return arguments for the embedded backbone, at most two seeds, one step and two tasks."""
    kept = [word for word in arguments if not re.match(r"backbone(\.\w+)?=", word)]
    kept = ["seed=1,2" if word.startswith("seed=1,2") else word for word in kept]
    kept = [re.sub(r"^tasks=\d+$", "tasks=2", word) for word in kept]
    # ImageNet's prompts are too long for the embedded text tower.
    kept = ["dataset=digits" if word == "dataset=imagenet" else word for word in kept]
    trains = is_run(arguments) and "method=zero_shot" not in arguments
    return [*kept, ONE_STEP] if trains else kept
