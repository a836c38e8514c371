"""Checks of a run's words and flags that Hydra would ignore, or refuse with an unclear message."""

import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

from so_clip.cli.program import COMMANDS
from so_clip.config.settings import GROUPS
from so_clip.errors import InputError, nearest, show_progress
from so_clip.system.commands import command, shell_word

# Hydra's own options that have an effect here, all of them in sweeps only.
SWEEP_OPTIONS = ("hydra/launcher", "hydra/sweeper", "hydra.launcher", "hydra.sweeper")
SWEEP_DIR = "hydra.sweep.dir"


def _meant(word: str) -> str:
    """Return " Did you mean ...?" for the name of an experiment or a word like a command."""
    from so_clip.config.compose import choices
    from so_clip.config.trees import SENTENCES
    from so_clip.data.sentences.card import known_sentence_cards

    if word in [path.stem for path in choices("experiment")]:
        return f" Did you mean experiment={word}?"
    datasets = known_sentence_cards()
    if {*word.split(",")} <= {*datasets}:
        chosen = command(*SENTENCES.words, "-m", f"dataset={word}", "...")
        return f" Several datasets are a sweep: {chosen}."
    return nearest(word, [*COMMANDS, *SENTENCES.words, *datasets])


def check_words(words: Sequence[str], multirun: bool | None = None) -> None:
    """Raise InputError for a word that is no option, or for an option without an effect.

    Args:
        words: OPTION=VALUE and GROUP=CHOICE.
        multirun: whether the run is a sweep; None for a command that has no sweeps.
    """
    for word in words:
        if word in COMMANDS:
            raise InputError(f"{word}: a command comes first: python -m so_clip {word} ...")
        if "=" not in word and not word.startswith("~"):
            raise InputError(
                f"{word}: there is no such command.{_meant(word)} A run's options are written "
                "OPTION=VALUE. `python -m so_clip --help commands` lists the commands."
            )
        name, _, value = word.partition("=")
        name = name.lstrip("+~")
        if name in (*GROUPS, "model", "experiment") and value.startswith(("{", "[")):
            raise InputError(
                f"{shell_word(word)}: a group takes the name of a choice, {name}=NAME. A single "
                f"option is written {name}.OPTION=VALUE."
            )
        if re.match(r"hydra\b", name):
            _check_hydra(name, value, multirun)


def _check_hydra(name: str, value: str, multirun: bool | None) -> None:
    is_of_sweeps = name == SWEEP_DIR or name.startswith(SWEEP_OPTIONS)
    if not is_of_sweeps or name.endswith("._target_"):
        known = ", ".join((*SWEEP_OPTIONS, SWEEP_DIR))
        raise InputError(
            f"{name}={value[:80]}: is an option of Hydra that has no effect here, or that the "
            f"program sets. These can be given, with -m: {known}."
        )
    if not multirun:
        way_out = "Leave it out." if multirun is None else "Add -m, or leave it out."
        raise InputError(f"{name}={value[:80]}: is for sweeps. {way_out}")
    if name == SWEEP_DIR and not value:
        raise InputError(f"{SWEEP_DIR} is empty: it needs a path, such as {SWEEP_DIR}=FOLDER.")


def check_flags(flags: dict[str, Any]) -> None:
    """Raise InputError for flags that Hydra would ignore, or refuse with an unclear message."""
    for name in ("package", "config_path", "config_name", "config_dir", "from_run"):
        if flags[name] == "":
            flag = "--from" if name == "from_run" else f"--{name.replace('_', '-')}"
            raise InputError(f"{flag}: is empty. Give a value, or leave it out.")
    for name in ("package", "resolve"):
        if flags[name] and flags["cfg"] is None:
            raise InputError(f"--{name}: goes with --cfg. Add --cfg job, or leave it out.")
    if flags["multirun"] and not flags["words"] and flags["from_run"] is None:
        raise InputError("--multirun: a sweep needs an option with values, such as seed=1,2,3.")
    asks = [word for word in flags["words"] or () if word.startswith("query=")]
    if flags["shell_completion"] and asks and "COMP_LINE" not in os.environ:
        raise InputError(f"--shell-completion {asks[0]}: is for the shell's own use.")


@contextmanager
def package_errors(package: str | None) -> Iterator[None]:
    """Turn Hydra's message about an unknown --package into InputError."""
    if package is None:
        yield
        return
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            yield
    except SystemExit as error:
        if error.code != 1:
            raise
        raise InputError(
            f"--package {package}: the configuration has no such part. Give a group, such as "
            "--package optimizer."
        ) from error
    finally:
        if said.getvalue() and "not found in config" not in said.getvalue():
            show_progress(said.getvalue().removesuffix("\n"))
