"""Finds what a page names and the repository does not have: options, flags, commands, methods,
datasets and other choices, make targets, extras, files, names in Python, and unknown words.

Inline code, shell blocks and Python blocks are read. Nothing is run, and no run is composed. A name
that belongs to another library is declared by a comment in the page: <!-- names: max_grad_norm -->
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from scripts.docs_site.blocks import (
    KINDS,
    Block,
    blocks_of,
    codes_of,
    commands_of,
    so_clip_arguments,
    unread_fences,
)
from scripts.docs_site.program import (
    GROUPS,
    ROOT,
    all_flags,
    choices,
    command_options,
    flags,
    python_names,
    run_options,
    targets,
    words,
)
from so_clip.cli.program import RUN
from so_clip.errors import nearest

_FOLDERS = ("so_clip", "conf", "docs", "scripts", "tests", "datasets", "results", "hydra_plugins")
# Runs write these folders; git ignores them.
_WRITTEN = ("results/tables", "results/figures", "results/README.md")
_PLACEHOLDER = re.compile(r"\b[A-Z]{2,}\b|<|\$|\{|\.\.\.")
_OPTION = re.compile(r"[+~]{0,2}([a-z_]+(?:[./@][a-zT_]\w*)*)=(.*)", re.DOTALL)
# An option as it may be mistyped: in capitals, or with "-" for "_".
_ANY_OPTION = re.compile(r"[+~]{0,2}([A-Za-z][\w-]*(?:[./@][\w-]+)*)=.*", re.DOTALL)
# Beginnings of column names for logits and scores; the program adds the rest.
_PREFIX = re.compile(r"^(validation_)?(zero_shot_|base_|new_|transfer_)?")
# The noun before or after a name in inline code: "the method `so`", "the `heic` extra".
_NOUNS = "method|dataset|backbone|adapter|optimizer|experiment|schedule|command|extra"


@dataclass(frozen=True)
class Wrong:
    """A name in a page that does not exist."""

    line: int
    word: str
    why: str

    def __str__(self) -> str:
        return f"line {self.line}: `{self.word}`: {self.why}"


class Page:
    """A page's Markdown, and the names that its own files and blocks add."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.blocks = blocks_of(text)
        written = [block for block in self.blocks if block.file]
        # A page may write a method, card or model of its own and use it.
        self.files = {Path(block.file) for block in written}
        self.stems = {Path(block.file).stem for block in written}
        self.keys = {key for block in written for key in _keys(block)}
        texts = [f"{block.file} {block.text} {block.comment}" for block in self.blocks]
        texts += re.findall(r"(?s)<!-- names:(.*?)-->", text)
        self.words = set(re.findall(r"\w+", "\n".join(texts)))

    def wrong(self) -> list[Wrong]:
        """Return what the page names and the repository does not have, in the page's order."""
        found = [wrong for block in self.blocks for wrong in self._of_block(block)]
        for code in codes_of(self.text):
            found += [Wrong(code.line, word, why) for word, why in self._of_code(code.text)]
        found += self._named_by_noun()
        for match in re.finditer(r"(?m)^::: ([\w.]+)", self.text):  # docstrings
            line = self.text.count("\n", 0, match.start()) + 1
            found += [Wrong(line, word, why) for word, why in _python_name(match[1])]
        why = f"write ``` alone or with one of {', '.join(filter(None, KINDS))}, and end it so."
        found += [Wrong(line, fence, why) for line, fence in unread_fences(self.text)]
        first = {(wrong.line, wrong.word): wrong for wrong in reversed(found)}
        return sorted(first.values(), key=lambda wrong: wrong.line)

    def _of_block(self, block: Block) -> Iterator[Wrong]:
        if block.kind == "sh":
            for command in commands_of(block.text):
                for word, why in self._of_command(command):
                    yield Wrong(_line(block, word), word, why)
        elif block.kind == "python":
            for word, why in _imports(block.text):
                yield Wrong(_line(block, word), word, why)

    def _of_code(self, text: str) -> Iterator[tuple[str, str]]:
        """Yield the wrong words of one piece of inline code, each with the reason."""
        if re.match(r"(make|pip|python|so_clip|torchrun) ", text):
            for command in commands_of(text):
                yield from self._of_command(command)
            return
        for word in text.split():
            yield from self._of_word(word.strip(",;"), RUN, inline=True)
        dotted = rf"({'|'.join(GROUPS)})\.(?=[a-z_]*_)[a-z_]+"  # such as optimizer.density_ratio
        is_option = re.fullmatch(dotted, text)
        if is_option and text not in run_options() and not self._is_word(text.partition(".")[2]):
            yield text, f"there is no option of that name.{nearest(text, run_options())}"
        if re.fullmatch(r"[a-z][a-z0-9_]{2,}", text) and not self._is_word(text):
            yield text, "the program has no such name; see the comment `names` in checks.py."
        if re.fullmatch(r"(so_clip|scripts|hydra_plugins)(\.\w+)+(\(.*\))?", text):
            yield from _python_name(text.partition("(")[0])

    def _is_word(self, word: str) -> bool:
        both = (word, _PREFIX.sub("", word))
        return any(name in known for known in (words(), self.words) for name in both)

    def _of_command(self, command: list[str]) -> Iterator[tuple[str, str]]:
        """Yield the wrong words of one command line."""
        arguments = so_clip_arguments(command)
        if arguments is not None:
            yield from self._of_program(arguments)
        elif command[0] == "make":
            for word in command[1:]:
                if "=" not in word and not word.startswith("-") and word not in targets():
                    yield word, f"the Makefile has no such target.{nearest(word, targets())}"
        elif "install" in command and command[0] in ("pip", "python"):
            yield from _extras(command)
        elif command[0] == "python":
            yield from _script(command)

    def _of_program(self, arguments: list[str]) -> Iterator[tuple[str, str]]:
        first = arguments[0] if arguments else ""
        name = first if first in choices()["command"] else RUN
        for index, word in enumerate(arguments):
            if index and arguments[index - 1] in ("--config-dir", "-cd", "--classes", "--help"):
                continue
            if name == RUN and re.fullmatch(r"[a-z]\w*", word) and "--help" not in arguments:
                kinds = choices()["dataset"] | {"sentences"} | choices()["command"] | self.stems
                before = arguments[index - 1] if index else ""
                if word not in kinds and not before.startswith("-"):
                    yield word, f"there is no such command or dataset.{nearest(word, kinds)}"
            yield from self._of_word(word, name)

    def _of_word(self, word: str, command: str, inline: bool = False) -> Iterator[tuple[str, str]]:
        """Yield the word if it is a flag, option, value or path that does not exist."""
        mistyped = _ANY_OPTION.fullmatch(word)
        if mistyped and not _OPTION.fullmatch(word):
            known = run_options() | command_options().get(command, frozenset())
            if (name := mistyped[1].lower().replace("-", "_")) in known:
                yield word, f"there is no option of that name. Did you mean {name!r}?"
            return
        is_flag = re.match(r"--[a-zA-Z]|-[a-zA-Z]$" if inline else r"--?[a-zA-Z]", word)
        if is_flag and not _PLACEHOLDER.search(word):
            flag = word.partition("=")[0]
            known = all_flags() if inline else flags(command) | flags(RUN)
            elsewhere = inline and (_is_of_a_script(flag) or flag.lstrip("-") in self.words)
            if flag not in known and not elsewhere:
                yield word, f"there is no such flag.{nearest(flag, known)}"
        elif option := _OPTION.fullmatch(word):
            if not (word.startswith("+") and option[1].rpartition(".")[2] in words()):
                yield from self._of_option(option[1], option[2], command, inline)
        elif inline:
            yield from self._of_path(word)

    def _of_option(
        self, key: str, value: str, command: str, inline: bool
    ) -> Iterator[tuple[str, str]]:
        own = command_options()
        known = run_options() | (set().union(*own.values()) if inline else own.get(command, set()))
        in_python = value in ("True", "False", "None") or value.startswith(("'", '"'))
        if key not in known and key not in self.keys:
            if not (inline and (in_python or self._is_keyword(key))):
                yield f"{key}={value}", f"there is no option of that name.{nearest(key, known)}"
        elif key in choices():
            for choice in value.strip("'\"").split(","):
                names = choices()[key] | self.stems | {"", "null"}
                is_name = choice.lower() in names or not _PLACEHOLDER.search(value)
                if is_name and choice not in names and re.fullmatch(r"\w+", choice):
                    yield f"{key}={value}", f"there is no {key} {choice}.{nearest(choice, names)}"

    def _is_keyword(self, key: str) -> bool:
        """Return whether key=... is an argument in Python, or an assignment in a shell block."""
        return "." not in key and key in words() and f"{key}=" in _python_of(self.blocks)

    def _of_path(self, word: str) -> Iterator[tuple[str, str]]:
        path = word.partition(":")[0].rstrip("/.")
        first = path.split("/")[0]
        if "/" not in word or first not in _FOLDERS or _PLACEHOLDER.search(path):
            return
        if first == "results" and not path.startswith(_WRITTEN):
            return
        exists = any(ROOT.glob(path)) if "*" in path else (ROOT / path).exists()
        if not exists and Path(path) not in self.files:
            yield word, "there is no such file or folder."

    def _named_by_noun(self) -> Iterator[Wrong]:
        """Yield names in sentences such as "the method `x`" that are no method."""
        pattern = rf"\b({_NOUNS})s? `([\w-]+)`|`([\w-]+)` ({_NOUNS})s?\b(?! of)"
        for match in re.finditer(pattern, self.text):
            group, name = match[1] or match[4], match[2] or match[3]
            names = choices()[group]
            if name in names or name in self.stems or (self._is_word(name) and "_" not in name):
                continue
            if re.fullmatch(r"[a-z]\w*", name) and name not in self.words:
                line = self.text.count("\n", 0, match.start()) + 1
                yield Wrong(line, name, f"there is no {group} of that name.{nearest(name, names)}")


def wrong_names(text: str) -> list[Wrong]:
    """Return what a page names and the repository does not have.

    Args:
        text: the page's Markdown.
    """
    return Page(text).wrong()


def _line(block: Block, word: str) -> int:
    """Return the number of the line of a word of a block."""
    before = block.text.partition(word)[0] if word in block.text else ""
    return block.line + 1 + before.count("\n")


def _keys(block: Block) -> set[str]:
    """Return the options that a YAML file of the page adds: its keys below its group's name."""
    path = Path(block.file)
    if path.suffix != ".yaml":
        return set()
    try:
        content = yaml.safe_load(block.text)
    except yaml.YAMLError:
        return set()
    return {f"{path.parent.name}.{key}" for key in content} if isinstance(content, dict) else set()


def _python_of(blocks: list[Block]) -> str:
    return "\n".join(block.text for block in blocks if block.kind in ("python", "sh"))


def _imports(text: str) -> Iterator[tuple[str, str]]:
    """Yield the names that a Python block imports from so_clip and so_clip does not have."""
    pattern = r"(?m)^\s*from (so_clip[\w.]*) import (?:\(([^)]*)\)|([^\n(#]+))"
    for module, inside, plain in re.findall(pattern, text):
        names = python_names(module)
        if names is None:
            yield module, "there is no such module."
            continue
        for name in (inside or plain).replace("\n", " ").split(","):
            first = name.split(" as ")[0].strip()
            if first and first not in names:
                yield first, f"{module} has no such name.{nearest(first, names)}"
    for name in re.findall(r"\bso_clip(?:\.\w+)+", text):
        yield from _python_name(name)


def _python_name(name: str) -> Iterator[tuple[str, str]]:
    """Yield a dotted name if its module does not exist or does not have its next part."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        names = python_names(".".join(parts[:length]))
        if names is not None:
            if length < len(parts) and parts[length] not in names:
                yield name, f"{'.'.join(parts[:length])} has no {parts[length]}."
            return


def _extras(command: list[str]) -> Iterator[tuple[str, str]]:
    known = choices()["extra"]
    for word in command:
        if match := re.search(r"^(?:\.|so[-_]clip|[^\[]*/)?\[([\w,-]+)\]", word):
            for extra in match[1].split(","):
                if extra not in known:
                    yield word, f"there is no extra {extra}.{nearest(extra, known)}"


def _script(command: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the script of a `python` command, or its flags, if they do not exist."""
    name = command[2] if command[1:2] == ["-m"] and len(command) > 2 else command[1]
    is_module = command[1] == "-m" and name.startswith("scripts.")
    if not is_module and not (name.endswith(".py") and name.startswith(_FOLDERS)):
        return
    file = ROOT.joinpath(*name.split(".")).with_suffix(".py") if is_module else ROOT / name
    if not file.is_file():
        yield name, "there is no such file."
        return
    for word in command[2:]:
        flag = word.partition("=")[0]
        if re.match(r"--[a-z]", flag) and not _is_of_a_script(flag):
            yield word, "no script has such a flag."


def _is_of_a_script(flag: str) -> bool:
    """Return whether a flag is declared in scripts/."""
    return f'"{flag}"' in _scripts()


@cache
def _scripts() -> str:
    files = sorted((ROOT / "scripts").rglob("*.py"))
    return "\n".join(path.read_text(encoding="utf-8") for path in files)
