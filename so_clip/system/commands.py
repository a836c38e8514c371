"""Commands in messages, quoted so that they run as printed.

A word on the command line is read twice: by the shell, and then by Hydra. Hydra's grammar gives a
meaning to blanks, commas, quotes, brackets and `${`. Every message that prints a command uses
`command`, and every value in it `override`.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

PROGRAM = ("python", "-m", "so_clip")
# The first word of runs on sentences, and the name of their main configuration.
SENTENCES = "sentences"
# Texts that Hydra reads without a change. It reads numbers, null, true and nan as other types.
_PLAIN_TEXT = re.compile(
    r"(?!(?:null|true|false|nan|inf)\Z|\.?\d)[A-Za-z_./][\w./+-]*", re.I | re.ASCII
)


def command(*words: object, program: tuple[str, ...] = PROGRAM) -> str:
    """Return a command line for the shell: the program and its words.

    Args:
        words: a command, flags, paths, and options from `override`.
        program: what comes before the words.
    """
    return " ".join(shell_word(argument(word)) for word in (*program, *words))


def as_typed(arguments: Sequence[str]) -> list[str]:
    """Return Hydra's arguments as the user types them: the kind of run is the first word.

    Args:
        arguments: flags and options; runs on sentences have `--config-name sentences` among them.
    """
    for place, (flag, value) in enumerate(pairwise(arguments)):
        if (flag, value) == ("--config-name", SENTENCES):
            return [SENTENCES, *arguments[:place], *arguments[place + 2 :]]
    return list(arguments)


def install(*requirements: str) -> str:
    """Return the command that installs a package, or an extra of this one."""
    return command(*requirements, program=("pip", "install"))


def override(name: str, value: Any) -> str:
    """Return NAME=VALUE so that Hydra reads exactly this value, without the shell's quotes.

    Args:
        name: the option, such as "dataset.split_file" or "+optimizer.fused".
        value: a text, path, number, boolean or None; also a list of them, or a mapping. Hydra
            allows no quotes for its keys.
    """
    return f"{name}={_hydra_value(value)}"


def argument(word: object) -> str:
    """Return a word as the program reads it. A relative path is no flag and no home folder."""
    text = str(word)
    return f"./{text}" if isinstance(word, Path) and text.startswith(("-", "~")) else text


def shell_word(word: str) -> str:
    """Return a word in the shell's quotes, if it needs them."""
    if not word.isprintable():
        # The shell's only quotes that hold a line break on one line.
        return f"$'{''.join(map(_ansi_letter, word))}'"
    if "'" in word and "!" not in word:  # ! in double quotes would repeat an earlier command
        return '"' + re.sub(r'(["$`\\])', r"\\\1", word) + '"'
    return shlex.quote(word)


def hydra_text(text: str) -> str:
    """Return a text in Hydra's quotes. An interpolation in it stays text."""
    text = re.sub(r"(\\*)\$\{", lambda found: f"{found[1] * 2}\\${{", text)
    text = re.sub(r"(\\*)'", lambda found: f"{found[1] * 2}\\'", text)
    return "'" + re.sub(r"(\\+)\Z", lambda found: found[1] * 2, text) + "'"


def _hydra_value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        pairs = [f"{key}:{_hydra_value(item)}" for key, item in value.items()]
        return f"{{{','.join(pairs)}}}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_hydra_value, value))}]"
    text = argument(value)
    return text if _PLAIN_TEXT.fullmatch(text) else hydra_text(text)


def _ansi_letter(letter: str) -> str:
    if letter in "\\'":
        return f"\\{letter}"
    if letter.isprintable():
        return letter
    return "".join(f"\\x{byte:02x}" for byte in letter.encode(errors="surrogateescape"))
