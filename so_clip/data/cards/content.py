"""A parsed card's keys, each of its kind, or an error that names file and key."""

from pathlib import Path
from typing import Any

from so_clip.data.cards.values import Problem
from so_clip.data.safe_path import why_outside
from so_clip.errors import InputError


class CardContent:
    """What a card holds, asked for key by key.

    Raises:
        InputError: it is no mapping.
    """

    def __init__(self, file: Path, content: Any) -> None:
        if not isinstance(content, dict):
            raise InputError(f"{file}: a card is a mapping of keys, not {_kind(content)}.")
        self.file = file
        self.content = content

    def _text(self, key: str) -> str:
        value = self.content[key]
        if not isinstance(value, str) or not value.strip():
            raise self._wrong(key, f"must be text, not {value!r}")
        return value

    def _path(self, key: str, may_be_empty: bool = False) -> str:
        if may_be_empty and self.content[key] == "":
            return ""
        value = self._text(key)
        if reason := why_outside(value):
            raise self._wrong(key, f"must be a path below the data root: {value!r}, {reason}")
        return value

    def _texts(self, key: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not value:
            raise self._wrong(key, f"must be a list of texts, not {_kind(value)}")
        for index, item in enumerate(value):
            if not isinstance(item, str) or not item.strip():
                raise self._wrong(
                    f"{key}[{index}]", f"must be text, not {item!r}. Put it in quotes"
                )
        return tuple(value)

    def _mapping(self, key: str, allowed: tuple[str, ...], optional: tuple[str, ...] = ()) -> Any:
        value = self.content[key]
        if not isinstance(value, dict):
            raise self._wrong(key, f"must be a mapping, not {_kind(value)}")
        for inner in value:
            if inner not in allowed + optional:
                raise self._wrong(f"{key}.{inner}", f"is unknown; known: {', '.join(allowed)}")
        for inner in allowed:
            if inner not in value:
                raise self._wrong(f"{key}.{inner}", "is missing")
        return value

    def _listed(self, key: str) -> tuple[str, ...]:
        return () if self.content.get(key) is None else self._texts(key, self.content[key])

    def _refuse(self, problem: Problem | None) -> None:
        if problem is not None:
            raise self._wrong(*problem)

    def _wrong(self, key: str, problem: str) -> InputError:
        return InputError(f"{self.file}: {key}: {problem}.")


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
