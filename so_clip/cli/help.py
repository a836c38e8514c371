"""What `python -m so_clip --help` prints, read from conf/ and the cards so that it cannot lie."""

import re
import textwrap
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from so_clip.data.cards.card import USER_LAYOUTS, card_names
from so_clip.errors import InputError, nearest
from so_clip.system.paths import CONF_DIR

GROUPS = ("backbone", "method", "adapter", "optimizer", "schedule", "experiment")
LAUNCHERS = "hydra/launcher"

_HEAD = """\
so_clip: adapt CLIP with a few images per class, and measure it.

usage: python -m so_clip [GROUP=CHOICE ...] [OPTION=VALUE ...] [-m]

A run draws `shots` training images per class, measures zero-shot accuracy, adapts the backbone
with a method, and measures again. It leaves a folder in results_dir with its configuration,
metrics, history and predictions.

examples
  python -m so_clip experiment=demo
      The embedded CLIP on real handwritten digits; needs no download and no GPU.
  python -m so_clip dataset=eurosat backbone=vit_b16 shots=4 data_root=$HOME/data
      SO as in the paper, 4 images per class.
  python -m so_clip -m experiment=demo shots=1,4,16 seed=1,2,3
      A sweep: every combination, one run each. Then: python -m so_clip table results/runs
"""

_TAIL = """\
other commands
  python -m so_clip prepare dataset=eurosat data_root=FOLDER
      Fetch a dataset, several of them (a,b) or all, into the layout that runs read.
  python -m so_clip doctor data_root=FOLDER
      Say what is there of every dataset, what is missing or damaged, and what mends it.
  python -m so_clip draw dataset=dtd shots=4 seed=1 data_root=FOLDER
      Print a few-shot draw as JSON; needs the split file alone.
  python -m so_clip forecast dataset=imagenet backbone=vit_l14 shots=16
      Tell memory, FLOPs and disk space beforehand; takes any run's options, needs no data.
  python -m so_clip status results/runs
      Watch which runs are done, running, failed or missing, and what to type for the rest.
  python -m so_clip table results/runs
      Turn all runs into an accuracy table and a memory table.
  python -m so_clip report results/runs -o report
      The paper's tables (CSV, Markdown, LaTeX, HTML), significance, plots and one page of it all.
      Plots and page need the extra 'report', as TensorBoard needs 'tensorboard'.
  python -m so_clip tensorboard results/runs -o FOLDER
      Copy curves and figures of new and changed runs into event files for TensorBoard.

flags
  -m, --multirun   run every combination of comma-separated values
  --cfg job        print the composed configuration instead of running it
  --debug          show the traceback of an error
exit codes: 0 done, 1 the run failed, 2 the input cannot be used, 130 interrupted
A sweep goes on after a failed run; it ends with 1, or with 2 if all that failed was bad input.
Started again, a sweep does only what is missing: finished runs are skipped, others resumed."""


_HELP = "python -m so_clip --help"
ALL = "all"
TOPICS = ("dataset", *GROUPS, "launcher", "options", "commands", ALL)
# What the first screen names of each group, and of the options.
_NAMED = {
    "dataset": ("digits", "eurosat", "dtd", "imagenet", "folder", "csv"),
    "backbone": ("tiny", "vit_b16", "vit_b32", "vit_l14", "vit_h14"),
    "method": ("so", "adamw", "clip_lora", "coop", "tip_adapter_f", "linear_probe", "zero_shot"),
    "experiment": ("demo", "paper_table", "so_main", "clip_lora_main", "kappa_t"),
}
_MOST_USED = ("shots", "seed", "template", "device", "data_root", "results_dir", "force")
_SHORT_TAIL = f"""\
other commands, which --help tells more of: {_HELP} commands
  prepare, doctor            fetch datasets, examine them
  draw, forecast             a draw; memory, FLOPs and disk beforehand
  status, table, report      what runs do, and have come to

flags
  -m, --multirun   run every combination of comma-separated values
  --help TOPIC     a group, launcher, options, commands or all; also: GROUP=CHOICE --help
  --debug          show the traceback of an error
exit codes: 0 done, 1 the run failed, 2 the input cannot be used, 130 interrupted"""


def shown(arguments: Sequence[str]) -> str:
    """Return what a command line with --help asks for.

    Args:
        arguments: all of them. A topic is a word by itself, or GROUP=CHOICE; without any it is the
            first screen.

    Raises:
        InputError: there is no such topic.
    """
    words = [each.removeprefix("--help=") for each in arguments]
    topics = [each for each in words if not each.startswith("-") and "=" not in each]
    if not topics:
        chosen = [text for each in words if (text := _of_choice(*each.partition("=")[::2]))]
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
        return _TAIL
    return "\n".join(_group(LAUNCHERS if topic == "launcher" else topic))


def overview() -> str:
    """Return the first screen: examples, groups, the options most used, and where the rest is."""
    parts = [_HEAD, f"groups (GROUP=CHOICE); all choices of one: {_HELP} GROUP"]
    for group, named in _NAMED.items():
        every = [*card_names(), "folder", "csv"] if group == "dataset" else None
        count = len(every or _choices(group)) - len(named)
        more = f" | {count} more" if count else ""
        parts.append(_entry(group, " | ".join(named) + more, 16))
    parts.append(
        "    adapter, optimizer, schedule: a method's parts; launcher: runs beside each other"
    )
    parts += ["", f"options (OPTION=VALUE) that are used most; all of them: {_HELP} options"]
    options = _options(CONF_DIR / "config.yaml")
    for name in _MOST_USED:
        parts += [each for each in options if each.strip().startswith(f"{name}=")]
    return "\n".join([*parts, "", _SHORT_TAIL])


def _of_choice(group: str, choice: str) -> str:
    """Return what one choice of a group is, and its options; "" if there is none of that name."""
    path = CONF_DIR / group / f"{choice}.yaml"
    if group not in ("dataset", *GROUPS) or path not in _choices(group):
        return ""
    prefix = "" if group in ("method", "experiment") else f"{group}."
    return "\n".join([f"{group}={choice}: {_opening(path)}", *_options(path, prefix)])


def _group(group: str) -> list[str]:
    """Return the choices of a group below its name."""
    parts = [f"  {group}"]
    if group == "dataset":
        parts.append(textwrap.indent(textwrap.fill(" ".join(card_names()), 92), "    "))
    column = 6 + max(len(path.stem) for path in _choices(group))
    return parts + [_entry(path.stem, _opening(path), column) for path in _choices(group)]


def manual() -> str:
    """Return the whole manual: what a run is, its groups and options, and examples."""
    parts = [_HEAD, "groups (GROUP=CHOICE)"]
    for group in ("dataset", *GROUPS, LAUNCHERS):
        parts += _group(group)
    return "\n".join([*parts, "", *_all_options(), "", _TAIL])


def _all_options() -> list[str]:
    parts = [
        "options (OPTION=VALUE), with their defaults",
        *_options(CONF_DIR / "config.yaml"),
        "  of any dataset with a split file",
        _entry("dataset.split_file=null", "read this split file instead of the dataset's own"),
    ]
    for layout in USER_LAYOUTS:
        parts.append(f"  of dataset={layout}")
        parts += _options(CONF_DIR / "dataset" / f"{layout}.yaml", "dataset.")
    for group in ("adapter/weights", "optimizer/so", "schedule/few_shot", "backbone/tiny"):
        prefix = group.partition("/")[0] + "."
        parts += [f"  of {group.replace('/', '=')}", *_options(CONF_DIR / f"{group}.yaml", prefix)]
    return parts


def _entry(name: str, text: str, column: int = 42) -> str:
    """Return an indented name with its explanation in a column of its own."""
    head = f"    {name}".ljust(column - 1) + " "
    filled = textwrap.fill(text, 100, initial_indent=head, subsequent_indent=" " * len(head))
    return (filled or head).rstrip()


def _choices(group: str) -> list[Path]:
    return sorted((CONF_DIR / group).glob("*.yaml"))


def _opening(path: Path) -> str:
    """Return the first sentence of a YAML file's opening comment, which says what it is."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = list(takewhile(lambda line: line.startswith("#"), lines))
    text = " ".join(line[1:].strip() for line in comment if "@package" not in line)
    return re.split(r"(?<=\.) ", text)[0].rstrip(".")


def _options(path: Path, prefix: str = "") -> list[str]:
    """Return "  key=default  comment" lines for the plain values of a YAML file."""
    lines, parents = [], ""
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
        lines.append(_entry(f"{name}={value}", comment or ""))
    return lines
