"""From class names to prompts."""

from collections.abc import Sequence

from so_clip.errors import InputError


def class_prompts(class_names: Sequence[str], template: str) -> list[str]:
    """Return one prompt a class: `template` with the name in place of {}, "_" read as a space.

    Raises:
        InputError: `template` does not have exactly one {}.
    """
    if template.count("{}") != 1:
        raise InputError(
            f"template={template!r}: needs exactly one {{}}, where the class name goes, as in "
            "'a photo of a {}.'."
        )
    before, after = template.split("{}")
    return [before + name.replace("_", " ") + after for name in class_names]
