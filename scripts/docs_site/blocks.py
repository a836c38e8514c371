"""Reads a page of the documentation: its fenced blocks, commands, inline code and links.

A page is Markdown: README.md, a file of docs/ or a text that the site's build makes.
"""

import re
import shlex
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parents[2] / "docs"
# Of blocks: those of run_page.py, and those that the site shows in its own way.
KINDS: tuple[str, ...] = ("", "sh", "python", "output", "table", "math", "facts")
KINDS += ("yaml", "json", "csv", "text", "toml")
PROGRAM = ["python", "-m", "so_clip"]
_FENCED = re.compile(r"(?ms)^( *)```([\w-]*)[^\n]*\n(.*?)^\1```[ \t]*$")
# Variables and words of a shell before a command.
_BEFORE = re.compile(r"[A-Z_]+=.*|do|then|else|elif|if|while|until|nohup|env|time|exec|xargs|!|\{")
# Places that a page may name although they are outside of the home.
_ANYWHERE = ("/dev/null", "/dev/stdout", "/dev/stderr")
_COMMENT = re.compile(r"<!--((?:(?!-->).)*)-->\s*$", re.DOTALL)


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        kind: the word after the fence, such as "sh"; "" without one.
        text: the content, without the indentation of the fence.
        file: the path that ends the text before it, for blocks that are files.
        line: the number of the fence's line in the page, from 1.
        comment: the HTML comment directly before the block, without its marks.
    """

    kind: str
    text: str
    file: str = ""
    line: int = 0
    comment: str = ""


class Code(NamedTuple):
    """Inline code, and the number of its line in the page."""

    text: str
    line: int


def read(page: Path) -> str:
    """Return the Markdown of a page."""
    return page.read_text(encoding="utf-8")


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page in order."""
    return blocks_of(read(page))


def blocks_of(text: str) -> list[Block]:
    """Return the fenced blocks of a page's Markdown in order."""
    found = []
    for match in _FENCED.finditer(text):
        before = text[: match.start()]
        comment = _COMMENT.search(before)
        name = re.search(r"`([^`\n]+)`:\s*$", before[: comment.start()] if comment else before)
        is_file = name is not None and match[2] not in ("", "sh", "output", "table", "math")
        found.append(
            Block(
                kind=match[2],
                text=textwrap.dedent(match[3]) if match[1] else match[3],
                file=name[1] if name and is_file else "",
                line=before.count("\n") + 1,
                comment=comment[1].strip() if comment else "",
            )
        )
    return found


def name_pages(text: str, link: Callable[[str, str], str]) -> str:
    """Replace paths such as docs/how_to/roles.md in a text.

    Args:
        text: a text of the program.
        link: gives what stands for a page: called with its path below docs/ and its first heading.
    """

    def named(match: re.Match[str]) -> str:
        heading = re.search(r"(?m)^# (.*)$", read(DOCS / match[1]))
        return link(match[1], heading[1] if heading else match[1])

    return re.sub(r"docs/([\w/]+\.md)", named, text)


def without_blocks(text: str) -> str:
    """Return a page's Markdown with empty lines in the place of fenced blocks and comments."""

    def emptied(match: re.Match[str]) -> str:
        return "\n" * match[0].count("\n")

    return re.sub(r"(?s)<!--.*?-->", emptied, _FENCED.sub(emptied, text))


def unread_fences(text: str) -> list[tuple[int, str]]:
    """Return fences that `blocks_of` does not read, or not with their kind, with their lines.

    Such as ~~~, four backticks, ``` sh with a blank, ```bash, or a block without an end.
    """
    found = [
        (match.start(2), match[0])
        for match in re.finditer(
            r"(?m)^([ \t>]*(?:[-*+] |\d+\. )?)(`{3}|~{3}).*$", without_blocks(text)
        )
    ]
    for match in _FENCED.finditer(text):
        first = match[0].partition("\n")[0]
        if match[2] not in KINDS or (not match[2] and first.strip() != "```"):
            found.append((match.start(), first))
    return sorted((text.count("\n", 0, start) + 1, fence.strip()) for start, fence in found)


def python_under(page: Path, heading: str) -> str:
    """Return the Python between a heading, such as "## Runs", and the next heading."""
    text, found = read(page), []
    for match in _FENCED.finditer(text):
        headings = re.findall(r"(?m)^#+ .*$", _FENCED.sub("", text[: match.start()]))
        if match[2] == "python" and headings[-1] == heading:
            found.append(match[3])
    return "\n".join(found)


def inline_code(page: Path) -> list[str]:
    """Return the text of every `code` outside fenced blocks."""
    return [code.text for code in codes_of(read(page))]


def codes_of(text: str) -> list[Code]:
    """Return every `code` outside fenced blocks, with its line. It may end in the next line."""
    plain, found = without_blocks(text), []
    for match in re.finditer(r"(?<!`)(``?)([^`\n]+(?:\n[^`\n]+)?)\1(?!`)", plain):
        line = plain.count("\n", 0, match.start()) + 1
        found.append(Code(re.sub(r"\s*\n\s*", " ", match[2]).strip(), line))
    return found


def links(page: Path) -> list[str]:
    """Return the targets of all links and images that are not on the network."""
    targets = re.findall(r"\]\(([^)\s]+)\)", read(page))
    return [target for target in targets if not target.startswith("http")]


def commands_of(text: str) -> Iterator[list[str]]:
    """Yield the commands of a shell block as lists of words, without comments and redirections."""
    for words in _words_of(re.sub(r"\$\([^()\n]*\)", "$VALUE", text)):
        command: list[str] = []
        for word in [*words, ";"]:
            if not set(word) <= set("|&;"):
                command.append(word)
            elif command:
                yield from _command(command)
                command = []


def outside_of_home(text: str) -> list[str]:
    """Return the words of a shell block that name a place outside of the reader's home."""
    found = []
    for word in (word for words in _words_of(re.sub(r"\$\(|\)", " ", text)) for word in words):
        path = Path(word.rpartition("=")[2])
        if (path.is_absolute() or ".." in path.parts or word.startswith("~")) and not (
            str(path).startswith(_ANYWHERE) or word.startswith("imagenet_dir=")
        ):
            found.append(word)
    return found


def _words_of(text: str) -> Iterator[list[str]]:
    """Yield the words and operators of each line of a shell block, without here-documents."""
    text = re.sub(r"(?ms)<<-?\s*['\"]?(\w+)['\"]?(.*?)\n(.*?)^\1$", r"\2", text)
    pending = ""
    for line in text.replace("\\\n", " ").splitlines():
        pending += line
        try:
            lexer = shlex.shlex(pending, posix=True, punctuation_chars="|&;><")
            lexer.whitespace_split, lexer.commenters = True, "#"
            found = list(lexer)
        except ValueError:  # a text in quotes ends in a later line
            pending += "\n"
            continue
        pending = ""
        yield found


def _command(words_of_it: list[str]) -> Iterator[list[str]]:
    """Yield a command without variables before it and without redirections."""
    kept = [word.lstrip("(") for word in words_of_it if not set(word) <= set("><(")]
    while kept and _BEFORE.fullmatch(kept[0]):
        kept = kept[1:]
    if kept:
        yield kept


def lines(block: Block) -> list[list[str]]:
    """Return the commands of a block as lists of words, without comments."""
    words = [shlex.split(line, comments=True) for line in _joined(block.text)]
    return [line for line in words if line]


def _joined(text: str) -> list[str]:
    return text.replace("\\\n", " ").splitlines()


def so_clip_arguments(line: Sequence[str]) -> list[str] | None:
    """Return the arguments of a so_clip command, or None for another program."""
    if line[0] in ("python", "python3") and list(line[1:3]) == PROGRAM[1:]:
        return list(line[3:])
    if line[0] in ("so_clip", "so-clip"):
        return list(line[1:])
    if line[0] == "torchrun" and "so_clip" in line:
        return list(line[line.index("so_clip") + 1 :])
    return None
