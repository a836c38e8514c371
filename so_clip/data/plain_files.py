"""Small files that people write: YAML and JSON as plain data, and text."""

import errno
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from so_clip.data.json_faults import FENCE, json_fault
from so_clip.errors import InputError, reason_of
from so_clip.system.safe_open import MAX_VALUES_BYTES, MAX_YAML_BYTES, read_plain

# libyaml reads ImageNet's thousand names thirty times faster, but not every PyYAML has it.
_LOADER: Any = type("_Loader", (getattr(yaml, "CSafeLoader", yaml.SafeLoader),), {})
_DEEPEST = 20
_TOO_DEEP = f"it is nested more than {_DEEPEST} levels deep"
_MARKED = re.compile(r"([-*+•]|\d{1,5}[.)]|\d{1,5}:)\s")
YAML_SUFFIXES = (".yaml", ".yml")


def shortened(value: Any, most: int = 80) -> str:
    """Return a value for a message: a file may hold anything, and a message is one line."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 20]}…{text[-15:]}"


def load_plain_yaml(data: bytes) -> Any:
    """Return the content of YAML text: mappings, lists, text, numbers, dates, and nothing else.

    Raises:
        ValueError: it holds aliases, is nested too deep, or gives a key twice in one mapping.
        yaml.YAMLError: it is not YAML, or asks for other objects.
    """
    try:
        _check_events(data)
        return yaml.load(data, _LOADER)
    except AttributeError as error:  # PyYAML's own, for !!timestamp before other text
        raise ValueError("a value does not fit its tag") from error
    except yaml.MarkedYAMLError as error:
        # PyYAML 6.0.4 and later have their own limit of nesting, with another message.
        read = data[: error.problem_mark.index] if error.problem_mark else b""
        if sum(map(read.count, (b"[", b"{"))) - sum(map(read.count, (b"]", b"}"))) > _DEEPEST:
            raise ValueError(_TOO_DEEP) from error
        raise


def load_plain_json(text: str | bytes) -> Any:
    """Return the content of JSON text.

    Raises:
        ValueError: it is not JSON, or gives a key twice in one mapping. The message names the
            line and says in plain words what to write.
        RecursionError: it is nested too deep.
    """

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise ValueError(f"the key {repeated!r} is given twice")
        return content

    try:
        return json.loads(text, object_pairs_hook=mapping)
    except json.JSONDecodeError as error:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text), "replace")
        raise ValueError(json_fault(text, error)) from error


def read_values(file: Path, option: str) -> Any:
    """Return the content of a JSON or YAML file, or the text of any other file.

    Args:
        file: its suffix decides its format.
        option: the option that names it, for messages.

    Raises:
        InputError: it is missing, not a plain file, too large, not UTF-8, or not of the format of
            its suffix.
    """
    data = _content(file, option)
    suffix = file.suffix.lower()
    try:
        if suffix == ".json":
            return load_plain_json(decoded(file, data))
        if suffix in YAML_SUFFIXES:
            return load_plain_yaml(data)
        return decoded(file, data)
    except InputError:
        raise
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        kind = "JSON" if suffix == ".json" else "YAML"
        problem = _fenced(data) or " ".join(str(error).split())
        raise InputError(f"{file}: is not {kind}: {problem}.") from error


def text_lines(file: Path, text: str) -> list[str]:
    """Return the lines of a text that are not blank, without blanks at their ends.

    Raises:
        InputError: the lines have marks of Markdown, such as code fences, bullets or numbers. They
            would become part of names and prompts.
    """
    numbered = enumerate(map(str.strip, text.splitlines()), start=1)
    lines = [(number, line) for number, line in numbered if line]
    for number, line in lines:
        if line.startswith(FENCE):
            raise InputError(f"{file}: line {number}: is a code fence, {FENCE}. Delete such lines.")
    if len(lines) > 1 and all(_MARKED.match(line) for _, line in lines):
        number, line = lines[0]
        mark = shortened(line.split()[0])
        raise InputError(
            f"{file}: line {number}: begins with {mark}, as all lines begin with a bullet or a "
            "number. Delete these marks, which would become part of the text."
        )
    return [line for _, line in lines]


def decoded(file: Path, data: bytes, encoding: str = "utf-8-sig") -> str:
    """Return the text of a file's content; InputError names the line that is not UTF-8."""
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{file}: line {line}: is not UTF-8 text. Save it as UTF-8.") from error


def _fenced(data: bytes) -> str:
    """Return the place of a code fence, which is neither JSON nor YAML; "" without one."""
    for number, line in enumerate(data.splitlines(), start=1):
        if line.strip().startswith(FENCE.encode()):
            return f"line {number} is a code fence, {FENCE}; delete such lines"
    return ""


def _content(file: Path, option: str) -> bytes:
    is_yaml = file.suffix.lower() in YAML_SUFFIXES
    try:
        return read_plain(file, MAX_YAML_BYTES if is_yaml else MAX_VALUES_BYTES)
    except (OSError, ValueError) as error:
        reason = reason_of(error)
        # JSON is read fifty times faster.
        way_out = " Write it as JSON." if getattr(error, "errno", None) == errno.EFBIG else ""
        raise InputError(
            f"{option}: {file} cannot be read: {reason}.{way_out if is_yaml else ''}"
        ) from error


def _check_events(data: bytes) -> None:
    depth = 0
    for event in yaml.parse(data, _LOADER):
        # A few lines of aliases can expand to more text than the memory holds.
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it holds an alias (*NAME); write the value out instead")
        # libyaml loads by recursion. Deep nesting would overflow the stack and kill the process.
        opens = isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent))
        depth += opens - isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent))
        if depth > _DEEPEST:
            raise ValueError(_TOO_DEEP)


def _mapping(loader: Any, node: yaml.MappingNode) -> Iterator[dict[Any, Any]]:
    """Build a mapping in two steps, as PyYAML does, but refuse a repeated key."""
    content: dict[Any, Any] = {}
    yield content
    content.update(loader.construct_mapping(node))
    if len(content) == len(node.value):
        return
    seen = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise ValueError(f"the key {key!r} is given twice")
        seen.add(key)


_LOADER.add_constructor("tag:yaml.org,2002:map", _mapping)
# YAML 1.1 reads 1:30 as 90, a number with the base 60. It stays text here, as in YAML 1.2.
_BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?\Z")
_LOADER.yaml_implicit_resolvers = {
    first: [("tag:yaml.org,2002:str", _BASE_60)] * (first in [*"-+0123456789"]) + known
    for first, known in _LOADER.yaml_implicit_resolvers.items()
}
