"""The page on all options, made from conf/."""

import html
import re
from collections.abc import Iterable, Iterator

from scripts.docs_site.blocks import name_pages
from scripts.docs_site.program import CONF
from so_clip.cli.choice_files import Row, opening
from so_clip.cli.help import IMAGES, LAUNCHERS, ON_SENTENCES, choice_rows, declared_rows

# Groups with a section of their own, and what a choice of each is.
_GROUPS = {
    "optimizer": "How the entries are trained.",
    "adapter": "What is trained.",
    "schedule": "How long, and on which batches.",
    "backbone": "The model of a run on images.",
    "model": "The encoder of a run on sentences.",
    "dataset": "Your own images. A published dataset has one option: `dataset.split_file`.",
    "method": "A method chooses an adapter, an optimizer and a schedule.",
    "experiment": "An experiment sets several options at once.",
    LAUNCHERS: "Where the runs of a sweep are started.",
}


def options() -> str:
    """Return the page on all options, with their defaults and meanings."""
    parts = [
        "# Options",
        "This page is made from `conf/`. Write an option as `OPTION=VALUE` after "
        "`python -m so_clip`. A choice of a group is written `GROUP=CHOICE`, such as "
        "`optimizer=so`; its options follow its heading. A default such as `${seed}` is the value "
        "of another option.",
        "## Options of runs on images",
        _option_table(declared_rows(IMAGES)),
        "## Options of runs on sentences",
        _option_table(declared_rows(ON_SENTENCES)),
    ]
    for group, what in _GROUPS.items():
        parts += [f"## {group}", what, *_of_every_choice(group)]
        for file in sorted((CONF / group).glob("*.yaml")):
            rows = list(_rows(group, file.stem))
            parts += [f"### {group}={file.stem}", _sentence(opening(file))]
            parts += [_option_table(rows)] if rows else []
    return "\n\n".join(part for part in parts if part) + "\n"


def _of_every_choice(group: str) -> Iterator[str]:
    """Yield a table of the declared options of a group that none of its files sets."""
    in_files = {
        row.name for file in (CONF / group).glob("*.yaml") for row in _rows(group, file.stem)
    }
    rows = [
        Row(name, str(field.default), field.description or "")
        for name, field in IMAGES.declared().items()
        if name.startswith(f"{group}.") and name not in in_files and not field.is_required()
    ]
    if rows:
        yield "Every choice also has:"
        yield _option_table(rows)


def _rows(group: str, choice: str) -> list[Row]:
    """Return the options of a choice, without its name and title: these are not for the user."""
    found = choice_rows(ON_SENTENCES if group == "model" else IMAGES, group, choice)
    hidden = ("name", "_target_", "method")
    rows = [row for row in found if row.name.rpartition(".")[2] not in hidden]
    return [row._replace(name=row.name.replace("/", ".")) for row in rows]


def _option_table(rows: Iterable[Row]) -> str:
    cells = [(f"`{row.name}`", f"`{row.default}`", row.text) for row in rows]
    return markdown_table(("Option", "Default", "Meaning"), cells)


def markdown_table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Return a text for a cell: a bar does not end it, and <, * and _ stay as they are."""
    if text.startswith("`"):
        return text.replace("|", "\\|")
    for mark in "|<*_":
        text = text.replace(mark, f"&#{ord(mark)};")
    return _linked(text)


def _linked(text: str) -> str:
    """Return a cell's text with links from docs/reference to the pages that it names."""
    paths = re.sub(r"docs/[\w/&#;]+\.md", lambda match: html.unescape(match[0]), text)
    return name_pages(paths, lambda page, title: f"[{title}](../{page})")


def _sentence(text: str) -> str:
    return f"{_cell(text)}." if text and text[-1] not in ".:" else _cell(text)
