"""The program's commands, options and choices, as the site names them. Nothing here is typed twice:
all is read from the command line's declarations, from conf/, from the cards and the source.
"""

import ast
import builtins
import keyword
import re
import tomllib
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import typer
import yaml
from omegaconf import DictConfig

from scripts.docs_site.page_program import PROGRAMS, SYSTEM
from so_clip.cli.program import COMMANDS, RUN, Program
from so_clip.config.compose import LAUNCHERS, compose
from so_clip.config.trees import RUNS, SENTENCES
from so_clip.data.cards.card import USER_LAYOUTS, card_names
from so_clip.data.sentences.card import known_sentence_cards

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
# Groups of conf/ that a word GROUP=CHOICE chooses from.
GROUPS = (
    "adapter",
    "backbone",
    "dataset",
    "experiment",
    "method",
    "model",
    "optimizer",
    "schedule",
)
# Flags that each command has, and of Hydra and torchrun, as pages use them.
_SHARED_FLAGS = {"--help", "-h", "--install-completion", "--show-completion", "--debug"}
_SHARED_FLAGS |= {"--standalone", "--nproc-per-node", "--nproc_per_node", "--logdir"}


@cache
def commands() -> dict[str, Any]:
    """Return the commands by name, as objects of click; the command of runs comes first."""
    app = typer.Typer(cls=Program, rich_markup_mode=None, callback=lambda: None)
    program: Any = typer.main.get_command(app)
    return {name: program.get_command(None, name) for name in (RUN, *COMMANDS)}


@cache
def help_text(name: str) -> str:
    """Return what `python -m so_clip NAME --help` prints."""
    command = commands()[name]
    with typer.Context(command, info_name=f"python -m so_clip {name}") as context:
        return str(command.get_help(context))


@cache
def flags(name: str) -> frozenset[str]:
    """Return the flags of a command."""
    own = {flag for parameter in commands()[name].params for flag in parameter.opts}
    return frozenset({flag for flag in own if flag.startswith("-")} | _SHARED_FLAGS)


@cache
def all_flags() -> frozenset[str]:
    """Return the flags of all commands."""
    return frozenset().union(*map(flags, commands()))


@cache
def run_options() -> frozenset[str]:
    """Return the names of all options of runs: groups, and the keys of every choice in conf/."""
    found: set[str] = {"hydra/launcher", "dataset.split_file"}
    found |= {f"hydra.launcher.{key}" for key in _launcher_options()}
    for group in GROUPS:
        found.add(group)
        for file in (CONF / group).glob("*.yaml"):
            keys = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
            found |= {f"{group}.{key}" for key in keys}
    for tree in (RUNS, SENTENCES):
        for key, value in compose([], tree=tree).items():
            inner = [str(name) for name in value] if isinstance(value, DictConfig) else []
            found |= {f"{key!s}.{name}" for name in inner} or {str(key)}
    return frozenset(found)


def _launcher_options() -> set[str]:
    """Return the options of the launchers that are installed, and those that conf/ sets."""
    from dataclasses import fields, is_dataclass

    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    Plugins.instance()  # the launchers register their options
    found = {"_target_", "ray"}
    store: Any = ConfigStore.instance().repo.get("hydra", {}).get("launcher", {})
    for entry in store.values():
        node = entry.node
        found |= set(node) if isinstance(node, DictConfig) else set()
        found |= {field.name for field in fields(node)} if is_dataclass(node) else set()
    for file in (CONF / "hydra" / "launcher").glob("*.yaml"):
        found |= set(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
    return found


@cache
def command_options() -> dict[str, frozenset[str]]:
    """Return the OPTION=VALUE words of each command's own, read from its help."""
    found = {}
    for name in COMMANDS:
        text = help_text(name)
        words = set(re.findall(r"(?<![\w.])([a-z_]+(?:\.[a-zT_]+)*)=", text))
        found[name] = frozenset(words | set(re.findall(r"(?m)^ {4,}([a-z_.]+)(?= {2}|,|$)", text)))
    return found


@cache
def choices() -> dict[str, frozenset[str]]:
    """Return the choices of every group, also those that are no files."""
    found = {group: {path.stem for path in (CONF / group).glob("*.yaml")} for group in GROUPS}
    found["dataset"] |= {*card_names(), *known_sentence_cards(), *USER_LAYOUTS, "all"}
    found["experiment"] |= {path.stem for path in (CONF / "meta" / "experiment").glob("*.yaml")}
    found["hydra/launcher"] = {path.stem for path in (CONF / "hydra" / "launcher").glob("*.yaml")}
    found["hydra/launcher"] |= {*LAUNCHERS, "basic"}
    found["command"] = {*COMMANDS, RUN}
    found["extra"] = set(_project()["optional-dependencies"])
    return {group: frozenset(names) for group, names in found.items()}


@cache
def targets() -> frozenset[str]:
    """Return the targets of the Makefile."""
    return frozenset(re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8")))


@cache
def _project() -> dict[str, Any]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project: dict[str, Any] = tomllib.loads(text)["project"]
    return project


@cache
def words() -> frozenset[str]:
    """Return the words that inline code may name: the program's names, not its prose.

    They are its functions, classes, arguments, fields and texts of one word (keys, columns, values
    of options); the keys and words of conf/ and the cards; the columns of results/tables; files,
    choices, options and make targets; and what Python and a shell have.
    """
    found = {*dir(builtins), *keyword.kwlist, *SYSTEM, *PROGRAMS, *targets()}
    found |= _parts(*run_options(), *chain(*choices().values(), *command_options().values()))
    for folder in ("so_clip", "hydra_plugins", "conf", "datasets"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml"):
                text = path.read_text(encoding="utf-8")
                found |= _code_words(text) if path.suffix == ".py" else _yaml_words(text)
                found |= set(path.relative_to(ROOT).with_suffix("").parts)
    for table in (ROOT / "results" / "tables").glob("*.csv"):
        heads, _, _ = table.read_text(encoding="utf-8").partition("\n")
        found |= {table.stem, *heads.split(",")}
    return frozenset(found)


def _code_words(text: str) -> set[str]:
    """Return what a module defines, and its texts of one word."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.FunctionDef) and not re.match("_[^_]", node.name):
            found |= {
                node.name,
                *(word.arg for word in ast.walk(node) if isinstance(word, ast.arg)),
            }
        elif isinstance(node, ast.keyword):
            found.add(node.arg or "")
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= _parts(node.value) if re.fullmatch(r"[\w.-]+", node.value) else set()
    return found


def _yaml_words(text: str) -> set[str]:
    """Return the keys of a YAML file, and its values of one word."""
    plain = re.sub(r"(?m)(^|\s)#.*$", "", text)
    keys = re.findall(r"([\w.]+):(?=\s)", plain)
    return _parts(*keys, *re.findall(r":[ \t]+([\w.]+)[ \t]*(?=[,}\n])", plain))


def _parts(*names: str) -> set[str]:
    return set(re.findall(r"\w+", " ".join(names)))


@cache
def python_names(module: str) -> frozenset[str] | None:
    """Return the names at the top of a module of so_clip, or None if there is no such module."""
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.is_file():
        return None
    found = {entry.stem for entry in path.iterdir()} if path.is_dir() else set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Name | ast.alias):
            found.add(node.id if isinstance(node, ast.Name) else node.asname or node.name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {node.value} if node.value.isidentifier() else set()
    return frozenset(found)
