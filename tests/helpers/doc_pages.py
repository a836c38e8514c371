"""Reads README.md and docs/: blocks, commands, options, links and paths; runs the commands."""

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from so_clip.cli.program import COMMANDS
from tests.helpers.command import ROOT, Outcome, call

README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
ALL_PAGES = [README, *PAGES, ROOT / "results" / "README.md"]
HOME = "$HOME"
PROGRAM = ["python", "-m", "so_clip"]
# Runs of a page need one step: the test checks the command, not the score.
ONE_STEP = "schedule.max_steps=1"
_FENCED = re.compile(r"(?ms)^```(\w*)\n(.*?)^```$")


class Block(NamedTuple):
    """A fenced block. `file` is the path that ends the text before it, for blocks with a file."""

    kind: str
    text: str
    file: str


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCED.finditer(text):
        name = re.search(r"`([^`]+)`:\s*$", text[: match.start()])
        is_file = name is not None and match[1] not in ("", "sh")
        found.append(Block(match[1], match[2], name[1] if name and is_file else ""))
    return found


def python_under(page: Path, heading: str) -> str:
    """Return the Python between a heading, such as "## Runs", and the next heading."""
    text, found = page.read_text(encoding="utf-8"), []
    for match in _FENCED.finditer(text):
        headings = re.findall(r"(?m)^#+ .*$", _FENCED.sub("", text[: match.start()]))
        if match[1] == "python" and headings[-1] == heading:
            found.append(match[2])
    return "\n".join(found)


def inline_code(page: Path) -> list[str]:
    """Return the text of every `code` outside fenced blocks."""
    return re.findall(r"`([^`\n]+)`", _FENCED.sub("", page.read_text(encoding="utf-8")))


def links(page: Path) -> list[str]:
    """Return the targets of all links and images that are not on the network."""
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    return [target for target in targets if not target.startswith("http")]


def lines(block: Block, home: str = HOME) -> list[list[str]]:
    """Return the commands of a block as lists of words, without comments."""
    words = [shlex.split(line.replace(HOME, home), comments=True) for line in _joined(block.text)]
    return [line for line in words if line]


def _joined(text: str) -> list[str]:
    return text.replace("\\\n", " ").splitlines()


def so_clip_arguments(line: Sequence[str]) -> list[str] | None:
    """Return the arguments of a so_clip command, or None for another program."""
    if list(line[:3]) == PROGRAM:
        return list(line[3:])
    if line[0] == "torchrun":
        return list(line[line.index("so_clip") + 1 :])
    return None


def is_run(arguments: Sequence[str]) -> bool:
    """Tell whether the arguments start a run or a sweep, not a command or help."""
    return arguments[0] not in COMMANDS and "--help" not in arguments


def all_lines(page: Path) -> Iterator[list[str]]:
    """Yield every command of a page: in its shell blocks and inline."""
    for block in blocks(page):
        if block.kind == "sh":
            yield from lines(block)
    for code in inline_code(page):
        words = shlex.split(code)
        if words[0] in ("make", "pip", "python") and len(words) > 1 and words != PROGRAM:
            yield words


def single_runs(overrides: Sequence[str]) -> Iterator[list[str]]:
    """Yield overrides of single runs so that every value of a sweep occurs once."""
    values = [_values(override) for override in overrides]
    for index in range(max(map(len, values), default=1)):
        yield [choices[min(index, len(choices) - 1)] for choices in values]


def _values(override: str) -> list[str]:
    key, _, text = override.partition("=")
    plain = not any(mark in text for mark in "[{'\"")
    return [f"{key}={value}" for value in text.split(",")] if plain else [override]


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
