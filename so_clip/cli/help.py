"""The text of `python -m so_clip --help`, read from conf/ and the dataset cards."""

import json
import re
import textwrap
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from so_clip.cli.program import COMMANDS
from so_clip.config.settings import declared_options
from so_clip.config.user_data import PublishedDataset
from so_clip.data.cards.card import USER_LAYOUTS, card_names
from so_clip.errors import InputError, nearest
from so_clip.system.paths import CONF_DIR

GROUPS = ("backbone", "method", "adapter", "optimizer", "schedule", "experiment")
LAUNCHERS = "hydra/launcher"

_HEAD = """\
so_clip: adapt CLIP with a few images per class, and measure it.

usage: python -m so_clip [GROUP=CHOICE ...] [OPTION=VALUE ...] [-m]

A run draws `shots` training images per class, measures zero-shot accuracy, adapts the backbone
with a method, and measures again. Its folder in results_dir holds configuration, metrics, history
and predictions.

examples
  python -m so_clip experiment=demo
      The embedded CLIP on real handwritten digits; needs no download and no GPU.
  python -m so_clip dataset=folder backbone=vit_b16 shots=4 data_root=$HOME/photos
      SO on your own images, one folder per class. Then: python -m so_clip predict --help
  python -m so_clip -m experiment=demo shots=1,4,16 seed=1,2,3
      A sweep: every combination, one run each. Then: python -m so_clip table results/runs
"""

_FLAGS = """\
flags
  -m, --multirun   run every combination of comma-separated values
  --cfg job        print the composed configuration instead of running it
  --from RUN       repeat the run in this folder; options change it
  --config-dir DIR a folder with choices of your own (docs/methods.md)
  --debug          print the traceback of an error
  --help TOPIC     a group, launcher, options, commands or all; also: GROUP=CHOICE --help
exit codes: 0 done, 1 the run failed, 2 the input cannot be used, 130 or 143 interrupted"""

_MORE = """\
Completion: so_clip --install-completion completes commands and flags in your shell. Instead, in
bash, eval "$(so_clip -sc install=bash)" completes GROUP=CHOICE and OPTION=VALUE (by Hydra).
A failed run does not stop a sweep. The sweep then ends with 1, or with 2 if only bad input failed.
If an option is given twice, the last value counts.
Repeat a sweep's command to run what is missing: finished runs are skipped, others are resumed."""

_HELP = "python -m so_clip --help"
ALL = "all"
TOPICS = ("dataset", *GROUPS, "launcher", "options", "commands", ALL)
# The choices and options on the first screen.
_COMMON_CHOICES = {
    "dataset": ("digits", "eurosat", "dtd", "imagenet", "folder", "csv"),
    "backbone": ("tiny", "vit_b16", "vit_l14", "siglip2_b16", "pe_core_b16", "rn50"),
    "method": ("so", "adamw", "clip_lora", "coop", "tip_adapter_f", "linear_probe", "zero_shot"),
    "experiment": ("demo", "paper_table", "so_main", "clip_lora_main", "kappa_t"),
}
_COMMON_OPTIONS = ("shots", "seed", "template", "device", "data_root", "results_dir", "force")


def shown(arguments: Sequence[str]) -> str:
    """Return the help for a command line that contains --help.

    Args:
        arguments: the whole command line. Topics are words without "=", or GROUP=CHOICE. Without
            a topic, the help is the first screen.

    Raises:
        InputError: there is no such topic, or no such choice of a group.
    """
    words = [argument.removeprefix("--help=") for argument in arguments]
    topics = [word for word in words if not word.startswith("-") and "=" not in word]
    if not topics:
        chosen = [text for word in words if (text := _choice(*word.partition("=")[::2]))]
        return "\n".join(chosen) or overview()
    texts = []
    for topic in topics:
        if topic not in TOPICS:
            raise InputError(
                f"--help {topic}: there is no such topic.{nearest(topic, TOPICS)} "
                f"Known: {', '.join(TOPICS)}."
            )
        texts.append(_topic(topic))
    return "\n\n".join(texts)


def _topic(topic: str) -> str:
    if topic == ALL:
        return manual()
    if topic == "options":
        return "\n".join(_all_options())
    if topic == "commands":
        return _commands()
    return "\n".join(_group(LAUNCHERS if topic == "launcher" else topic))


def overview() -> str:
    """Return the first screen: examples, groups, common options, and where to find the rest."""
    parts = [_HEAD, f"groups (GROUP=CHOICE); all choices of a group: {_HELP} GROUP"]
    for group, named in _COMMON_CHOICES.items():
        names = [*card_names(), *USER_LAYOUTS] if group == "dataset" else _choices(group)
        count = len(names) - len(named)
        more = f" | {count} more" if count else ""
        parts.append(_entry(group, " | ".join(named) + more, 16))
    parts.append("    adapter, optimizer, schedule: parts of a method; launcher: parallel runs")
    parts += ["", f"common options (OPTION=VALUE); all of them: {_HELP} options"]
    options = _declared()
    for name in _COMMON_OPTIONS:
        parts += [line for line in options if line.strip().startswith(f"{name}=")]
    parts += ["", f"other commands, each with its own --help: {_HELP} commands"]
    parts += textwrap.wrap(", ".join(COMMANDS), 96, initial_indent="    ")
    return "\n".join([*parts, "", _FLAGS])


def _commands() -> str:
    """Return all commands with an example each, the flags, and how sweeps end."""
    parts = ["other commands, each with its own --help"]
    for name, (arguments, text) in COMMANDS.items():
        parts.append(f"  python -m so_clip {name} {arguments}")
        parts += textwrap.wrap(text, 94, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join([*parts, "", _FLAGS, _MORE])


def _choice(group: str, choice: str) -> str:
    """Return the summary and options of one choice; "" for a card, or for an option."""
    if group not in ("dataset", *GROUPS):
        return ""
    files = {path.stem: path for path in _choices(group)}
    if choice not in files:
        cards = card_names() if group == "dataset" else []
        if choice not in cards:
            raise InputError(
                f"--help {group}={choice}: there is no {group} of that name."
                f"{nearest(choice, [*files, *cards])} `{_HELP} {group}` lists them all."
            )
        return ""
    path = files[choice]
    prefix = "" if group in ("method", "experiment") else f"{group}."
    return "\n".join([f"{group}={choice}: {_opening(path)}", *_options(path, prefix)])


def _group(group: str) -> list[str]:
    """Return a group's name and its choices."""
    parts = [f"  {group}"]
    if group == "dataset":
        parts.append(textwrap.indent(textwrap.fill(" ".join(card_names()), 92), "    "))
    column = 6 + max(len(path.stem) for path in _choices(group))
    return parts + [_entry(path.stem, _opening(path), column) for path in _choices(group)]


def manual() -> str:
    """Return the whole manual: examples, all choices of all groups, options and commands."""
    parts = [_HEAD, "groups (GROUP=CHOICE)"]
    for group in ("dataset", *GROUPS, LAUNCHERS):
        parts += _group(group)
    return "\n".join([*parts, "", *_all_options(), "", _commands()])


def _all_options() -> list[str]:
    split_file = PublishedDataset.model_fields["split_file"]
    parts = [
        "options (OPTION=VALUE), with their defaults",
        *_declared(),
        "  of any dataset with a split file",
        _entry("dataset.split_file=null", split_file.description or ""),
    ]
    for layout in USER_LAYOUTS:
        parts.append(f"  of dataset={layout}")
        parts += _options(CONF_DIR / "dataset" / f"{layout}.yaml", "dataset.")
    for group in ("adapter/weights", "optimizer/so", "schedule/few_shot", "backbone/tiny"):
        prefix = group.partition("/")[0] + "."
        parts += [f"  of {group.replace('/', '=')}", *_options(CONF_DIR / f"{group}.yaml", prefix)]
    return parts


def _entry(name: str, text: str, column: int = 42) -> str:
    """Return an indented name with its explanation in a second column."""
    head = f"    {name}".ljust(column - 1) + " "
    filled = textwrap.fill(text, 100, initial_indent=head, subsequent_indent=" " * len(head))
    return (filled or head).rstrip()


def _choices(group: str) -> list[Path]:
    return sorted((CONF_DIR / group).glob("*.yaml"))


def _opening(path: Path) -> str:
    """Return the first sentence of a YAML file's opening comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = list(takewhile(lambda line: line.startswith("#"), lines))
    text = " ".join(line[1:].strip() for line in comment if "@package" not in line)
    return re.split(r"(?<=\.) ", text)[0].rstrip(".")


def _declared() -> list[str]:
    """Return "  name=default  help" lines for the options that belong to no group."""
    lines = []
    for name, field in declared_options().items():
        is_of_choice = name.partition(".")[0] in GROUPS  # listed with the file of the choice
        if not field.is_required() and not is_of_choice:
            default = field.default
            shown = default if isinstance(default, str) else json.dumps(default)
            lines.append(_entry(f"{name}={shown}", field.description or ""))
    return lines


def _options(path: Path, prefix: str = "") -> list[str]:
    """Return "  key=default  help" lines for the plain values of a YAML file.

    The help is the line's comment, or that of the option's declaration.
    """
    lines, parents, declared = [], "", declared_options()
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.match(r"( *)([A-Za-z]\w*):( *)([^#]*?)(?: +# *(.*))?$", line)
        if not match or match[2] in ("defaults", "hydra"):
            if line.startswith("hydra:"):
                break
            continue
        indent, key, _, value, comment = match.groups()
        if not indent and not value:
            parents = f"{key}."
            if comment:
                lines.append(_entry(f"{prefix}{key}=[...]", comment))
            continue
        name = f"{prefix}{parents if indent else ''}{key}"
        if not comment and name in declared:
            comment = declared[name].description
        lines.append(_entry(f"{name}={value}", comment or ""))
    return lines
