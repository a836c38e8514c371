"""What the values of a card must be like: each rule returns what is wrong, key and problem."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from so_clip.data.safe_path import why_outside

# More images, or pixels of one, than any dataset has.
MAX_COUNT = 10**9
Problem = tuple[str, str]

_PACKAGE = {"module": r"[A-Za-z_]\w*", "install": r"[A-Za-z0-9][\w.\[\],=<>~!-]*"}


def of_sizes(sizes: Mapping[str, Any], class_count: int, test_only: bool) -> Problem | None:
    """Sizes are counts, and there is something to test and, for each class, to train on."""
    for key, value in sizes.items():
        if type(value) is not int or not 0 <= value <= MAX_COUNT:
            return f"sizes.{key}", f"must be a whole number, 0 to a billion, not {_short(value)}"
    if sizes["classes"] != class_count:
        return (
            "sizes.classes",
            f"is {sizes['classes']}, but class_names holds {class_count} names",
        )
    if test_only:
        for key in ("train", "val"):
            if sizes[key]:
                return f"sizes.{key}", f"must be 0, since the layout has test images alone: {sizes}"
    elif sizes["train"] < class_count:
        return (
            "sizes.train",
            f"is {sizes['train']}, too few: each of {class_count} classes needs an image",
        )
    return None if sizes["test"] else ("sizes.test", "is 0, so that there is nothing to test")


def of_class_names(names: Sequence[str], told_apart: bool) -> Problem | None:
    """Names read well in a prompt, and no two are one to a text encoder, unless `told_apart`."""
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        if not name.isprintable() or name != " ".join(name.split()):
            return (
                f"class_names[{index}]",
                f"must be one line, with single blanks and none at its ends, not {_short(name)}",
            )
        first = seen.setdefault(" ".join(name.lower().replace("_", " ").split()), index)
        if first != index and not told_apart:
            return (
                f"class_names[{index}]",
                f"{_short(name)} makes the same prompt as class_names[{first}]. Name them apart, "
                "or make them one class",
            )
    return None


def of_class_folders(folders: Sequence[str], class_count: int) -> Problem | None:
    """Each class has a folder of its own."""
    if len(folders) != class_count or len(set(folders)) != class_count:
        return (
            "class_folders",
            f"must name {class_count} different folders, one a class, not {len(set(folders))}",
        )
    for index, folder in enumerate(folders):
        if why_outside(folder) or "/" in folder:
            return f"class_folders[{index}]", f"must be a folder's name: {folder!r}"
    return None


def of_other_folders(folders: Sequence[str]) -> Problem | None:
    """A folder below the data root, or the data root itself."""
    for index, folder in enumerate(folders):
        if folder != "." and (reason := why_outside(folder)):
            return f"other_folders[{index}]", f"must be a path below the data root: {reason}"
    return None


def of_image_pixels(value: Any) -> Problem | None:
    """A count, where it is given."""
    if value is None or (type(value) is int and 0 < value <= MAX_COUNT):
        return None
    return "image_pixels", f"must be a whole number above 0, not {_short(value)}"


def of_sha256(value: Any) -> Problem | None:
    """Sixty-four hexadecimal digits, where they are given."""
    if value is None or (isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)):
        return None
    return "split_sha256", f"must be 64 hexadecimal digits, not {_short(value)}"


def of_templates(templates: Mapping[str, Any]) -> Problem | None:
    """A template is text with one place for the class name."""
    for key, text in templates.items():
        if not isinstance(text, str) or not re.fullmatch(r"[^{}]*\{\}[^{}]*", text):
            return f"templates.{key}", f"must be text with one {{}} for the class, not {text!r}"
    return None


def of_package(package: Mapping[str, Any]) -> Problem | None:
    """A module's name, and what pip can be told in one word."""
    for key, pattern in _PACKAGE.items():
        if not isinstance(package[key], str) or not re.fullmatch(pattern, package[key]):
            return f"package.{key}", f"must be the name of a package, not {_short(package[key])}"
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:50]}…"
