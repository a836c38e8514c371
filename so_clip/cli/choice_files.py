"""Reads the files of choices in conf/ for the manual: what each is, its options and their texts."""

import re
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from pydantic.fields import FieldInfo


class Row(NamedTuple):
    """An option in the manual."""

    name: str
    default: str
    text: str


def opening(path: Path) -> str:
    """Return the first sentence of a YAML file's opening comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = list(takewhile(lambda line: line.startswith("#"), lines))
    text = " ".join(line[1:].strip() for line in comment if "@package" not in line)
    return re.split(r"(?<=\.) ", text)[0].rstrip(".")


def rows_of(
    path: Path, prefix: str, declared: Mapping[str, FieldInfo], replaced: Mapping[str, str]
) -> Iterator[Row]:
    """Yield the plain values of a YAML file as options.

    Args:
        path: the file.
        prefix: of each name, such as "optimizer.".
        declared: options whose declarations explain them where the file has no comment.
        replaced: values that another file replaces.
    """
    parents = ""
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
                yield Row(f"{prefix}{key}", "[...]", comment)
            continue
        name = f"{prefix}{parents if indent else ''}{key}"
        value = str(replaced.get(name, value))
        if not comment and name in declared:
            comment = declared[name].description
        yield Row(name, value, comment or "")
