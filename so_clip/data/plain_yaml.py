"""YAML as plain data: no objects, no aliases, no depth that a loader could drown in."""

from typing import Any

import yaml

# libyaml reads ImageNet's thousand names thirty times faster, but not every PyYAML carries it.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DEEPEST = 20


def load_plain_yaml(data: bytes) -> Any:
    """Return what a YAML text holds: mappings, lists, text, numbers, dates, and nothing else.

    Raises:
        ValueError: it holds aliases or is nested too deep.
        yaml.YAMLError: it is no YAML, or asks for other objects.
    """
    depth = 0
    for event in yaml.parse(data, _LOADER):
        # A few lines of aliases can stand for more text than memory holds.
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it holds an alias (*NAME), and cards are written out")
        # libyaml loads by recursion, until the stack ends and the process with it.
        opens = isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent))
        depth += opens - isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent))
        if depth > _DEEPEST:
            raise ValueError(f"it is nested more than {_DEEPEST} levels deep")
    return yaml.load(data, _LOADER)
