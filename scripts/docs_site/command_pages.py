"""The pages on the command line, made from the program: an index, and a page for each command."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from scripts.docs_site.blocks import DOCS, blocks, commands_of, read, so_clip_arguments
from scripts.docs_site.program import commands, help_text
from scripts.docs_site.reference import markdown_table
from so_clip.cli.help import ALL, IMAGES, ON_SENTENCES, Kind, shown
from so_clip.cli.program import COMMANDS, RUN

FOLDER = "reference/commands"
_SUMMARY = "Train a model and test it; with `-m`, a sweep of runs."
# The pages of the help's topics: file, manual, words before --help, title.
_TOPICS: tuple[tuple[str, Kind, list[str], str], ...] = (
    ("topics", IMAGES, [], "Help topics of runs on images"),
    ("topics_sentences", ON_SENTENCES, ["rte"], "Help topics of runs on sentences"),
)
_GUIDES = 4


def pages() -> dict[str, str]:
    """Return the pages by their path relative to docs/; the index comes first."""
    made = {"index": _index(), RUN: _command(RUN, "OPTION=VALUE ...", _SUMMARY)}
    made |= {name: _command(name, *about) for name, about in COMMANDS.items()}
    made |= {name: _topics(title, kind, words) for name, kind, words, title in _TOPICS}
    return {f"{FOLDER}/{name}.md": text for name, text in made.items()}


def _index() -> str:
    rows = [(f"[{_title(RUN)}]({RUN}.md)", _SUMMARY)]
    rows += [(f"[{_title(name)}]({name}.md)", about[1]) for name, about in COMMANDS.items()]
    topics = [f"- [{title}]({name}.md)" for name, _, _, title in _TOPICS]
    return _page(
        "# Command line",
        "`python -m so_clip` starts a run. With a command's name it does something else. After "
        "installation, `so_clip` is the same program.",
        markdown_table(("Command", "What it does"), rows),
        "A command with `--help` prints the text of its page. `--help` with a topic prints one "
        "part of the manual of runs:",
        "\n".join(topics),
        "[All options](../options.md) are on one page. The pages of this section are made from "
        "the program.",
    )


def _title(name: str) -> str:
    return "Runs and sweeps" if name == RUN else f"so_clip {name}"


def _command(name: str, arguments: str, summary: str) -> str:
    """Return a command's page: example, guides, help and flags."""
    words = ["python -m so_clip", *([] if name == RUN else [name]), arguments]
    text = shown([]) if name == RUN else help_text(name)
    rows = [
        (", ".join(f"`{flag}`" for flag in parameter.opts), parameter.help or "")
        for parameter in commands()[name].params
        if parameter.param_type_name == "option"
    ]
    return _page(
        f"# {_title(name)}",
        summary,
        _fence("sh", " ".join(words)),
        "\n".join(_guides(name)),
        "## What --help prints",
        _fence("text", text.partition("\nArguments:\n")[0].partition("\nOptions:\n")[0]),
        *(["## Flags", markdown_table(("Flag", "Meaning"), rows)] if rows else []),
    )


def _guides(name: str) -> Iterator[str]:
    """Yield links to the guides of a command: with its name, then those that use it most."""
    used = {page: names.count(name) for page, names in _used().items() if name in names}
    first = sorted(used, key=lambda page: (name not in page.stem, -used[page], page.stem))
    if first:
        yield "Guides:\n"
    for page in first[:_GUIDES]:
        heading = re.search(r"(?m)^# (.*)$", read(page))
        yield f"- [{heading[1] if heading else page.stem}](../../how_to/{page.name})"


@cache
def _used() -> dict[Path, list[str]]:
    """Return the commands in the shell blocks of each guide."""
    found: dict[Path, list[str]] = {}
    for page in sorted((DOCS / "how_to").glob("*.md")):
        for block in blocks(page):
            for command in commands_of(block.text) if block.kind == "sh" else ():
                found.setdefault(page, []).extend((so_clip_arguments(command) or [""])[:1])
    return found


def _topics(title: str, kind: Kind, words: list[str]) -> str:
    """Return the page of a manual's topics."""
    parts = [f"# {title}", "`--help` with a topic prints one part of the manual."]
    for topic in kind.topics:
        if topic != ALL:
            arguments = [*words, "--help", topic]
            parts += [f"## {' '.join(arguments)}"]
            parts += [_fence("sh", " ".join(["python -m so_clip", *arguments]))]
            parts += [_fence("text", shown(arguments))]
    return _page(*parts)


def _fence(kind: str, text: str) -> str:
    return f"```{kind}\n{text.strip(chr(10))}\n```"


def _page(*parts: str) -> str:
    return "\n\n".join(filter(None, parts)) + "\n"
