"""Class names that the user gives instead of those of the run. This module imports no torch."""

from pathlib import Path

from so_clip.data.cards.card_file import problem_of_class_names
from so_clip.data.plain_files import read_values, text_lines
from so_clip.errors import InputError

CLASSES, CLASSES_FILE = "--classes", "--classes-file"


def other_classes(names: str | None, file: Path | None) -> list[str] | None:
    """Return the class names of the two flags, in order; None if neither is given.

    Args:
        names: names with commas between them.
        file: text with one name on each line, or a list in JSON or YAML.

    Raises:
        InputError: both are given, the file cannot be used, there are fewer than two names, or a
            name cannot be part of a prompt or is given twice.
    """
    if names is None and file is None:
        return None
    if names is not None and file is not None:
        raise InputError(f"{CLASSES} and {CLASSES_FILE} are both given. Give one of them.")
    if file is None:
        place, found = CLASSES, [name.strip() for name in str(names).split(",")]
    else:
        place, values = f"{CLASSES_FILE} {file}", read_values(file, CLASSES_FILE)
        found = text_lines(file, values) if isinstance(values, str) else values
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise InputError(
                f"{place}: must be a list of names, not {type(found).__name__} or other values. "
                "Write one name on each line of a text file."
            )
    if len(found) < 2:
        raise InputError(f"{place}: gives {len(found)} class. Give at least two.")
    if "" in found:
        raise InputError(f"{place}: one name is empty. Remove the comma or the entry.")
    if problem := problem_of_class_names(found, have_folders=False):
        key, text = problem
        raise InputError(f"{place}: {key} {text}.")
    return found
