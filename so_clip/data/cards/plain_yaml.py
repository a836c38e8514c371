"""YAML as plain data: no objects, no aliases, no depth that a loader could drown in."""

from collections.abc import Iterator
from typing import Any

import yaml

# libyaml reads ImageNet's thousand names thirty times faster, but not every PyYAML carries it.
_LOADER: Any = type("_Loader", (getattr(yaml, "CSafeLoader", yaml.SafeLoader),), {})
_DEEPEST = 20
_TOO_DEEP = f"it is nested more than {_DEEPEST} levels deep"


def load_plain_yaml(data: bytes) -> Any:
    """Return what a YAML text holds: mappings, lists, text, numbers, dates, and nothing else.

    Raises:
        ValueError: it holds aliases, is nested too deep, or gives a key twice in one mapping.
        yaml.YAMLError: it is no YAML, or asks for other objects.
    """
    try:
        _check_events(data)
        return yaml.load(data, _LOADER)
    except yaml.MarkedYAMLError as error:
        # From 6.0.4 on, PyYAML has its own limit of nesting, and its own words for it.
        read = data[: error.problem_mark.index] if error.problem_mark else b""
        if sum(map(read.count, (b"[", b"{"))) - sum(map(read.count, (b"]", b"}"))) > _DEEPEST:
            raise ValueError(_TOO_DEEP) from error
        raise


def _check_events(data: bytes) -> None:
    depth = 0
    for event in yaml.parse(data, _LOADER):
        # A few lines of aliases can expand to more text than the memory holds.
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it holds an alias (*NAME), and cards are written out")
        # libyaml loads by recursion. Deep nesting would overflow the stack and kill the process.
        opens = isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent))
        depth += opens - isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent))
        if depth > _DEEPEST:
            raise ValueError(_TOO_DEEP)


def _mapping(loader: Any, node: yaml.MappingNode) -> Iterator[dict[Any, Any]]:
    """Build a mapping as PyYAML does, in two steps, but never let a later value win."""
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
