"""From class names to prompts."""

from collections.abc import Sequence

from so_clip.errors import InputError


def class_prompts(class_names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Return prompts, a class after the other: templates with its name in place of {}.

    In names, "_" is read as a space.

    Raises:
        InputError: a template does not have exactly one {}.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise InputError(
                f"template={template!r}: needs exactly one {{}}, where the class name goes, as in "
                "'a photo of a {}.'."
            )
    parts = [template.split("{}") for template in templates]
    names = [name.replace("_", " ") for name in class_names]
    return [before + name + after for name in names for before, after in parts]
