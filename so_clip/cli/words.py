"""OPTION=VALUE words of the commands that compose no run, declared as `so_clip.checks.Options`."""

import re
import textwrap
from collections.abc import Sequence
from typing import Any

from pydantic.fields import FieldInfo

from so_clip.checks import Options, OptionsType, validated
from so_clip.errors import InputError, nearest

# At most as many digits as a float can have, because Python refuses to read thousands.
_NUMBER = re.compile(r"[+-]?(?=\.?\d)(0|[1-9]\d{0,300})?(\.\d{0,300})?([eE][+-]?\d{1,3})?")


def parsed(
    options: type[OptionsType], words: Sequence[str], command: str, **flags: Any
) -> OptionsType:
    """Return the words as an object of the class `options`.

    Args:
        options: the class that declares the names, types and defaults.
        words: OPTION=VALUE, in any order.
        command: the command's name, for messages.
        flags: fields of the class whose values come from flags, such as --offline-from.

    Raises:
        InputError: an unknown name, a name given twice, or a value that cannot be used.
    """
    fields = {name: field for name, field in options.model_fields.items() if name not in flags}
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if name in fields and not equals:
            raise InputError(f"{word}: needs a value: {word}=VALUE.")
        if name not in fields:
            raise InputError(
                f"{word}: there is no such option.{nearest(name, fields)} `python -m so_clip "
                f"{command} --help` lists all options; they are written OPTION=VALUE."
            )
        if name in values:
            raise InputError(f"{word}: {name} is given twice. Give it once.")
        values[name] = _value(_text(word, text), fields[name])
    defaults = {name: field.default for name, field in fields.items()}
    return validated(options, defaults | values | flags)


def is_run_option(word: str, options: type[Options]) -> bool:
    """Return whether a word is an option of runs, and none of this class."""
    from so_clip.config.settings import GROUPS, TOP_LEVEL

    name = word.partition("=")[0].lstrip("+~")
    first = name.partition(".")[0].partition("@")[0]
    return name not in options.model_fields and first in (*GROUPS, *TOP_LEVEL, "experiment")


def _text(word: str, text: str) -> str:
    """Return a text without Hydra's quotes, so that an option of a run means the same here.

    A text that Hydra cannot read, such as a folder with brackets in its name, stays unchanged.
    """
    if not re.search(r"""["'\\]|\$\{""", text):
        return text
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    from so_clip.config.parse import resolving

    try:
        value = OverridesParser.create().parse_override(word).value()
    except HydraException:
        return text
    with resolving():
        return OmegaConf.create({"value": value}).value if isinstance(value, str) else text


def _value(text: str, field: FieldInfo) -> Any:
    """Return a number or a boolean for an option of that type, if the text is one; else the text.

    YAML would also read 1:30 as 90, 010 as 8 and on as true.
    """
    if field.annotation is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if field.annotation in (int, float) and _NUMBER.fullmatch(text):
        return float(text) if set(text) & set(".eE") else int(text)
    return text


def help_of(options: type[Options], *flags: str) -> str:
    """Return names, defaults and help texts of all options but `flags`, for a command's --help."""
    lines = ["\b", "Options, written OPTION=VALUE:"]
    for name, field in options.model_fields.items():
        if name in flags:
            continue
        default = "" if field.default is None else str(field.default).lower()
        lines += textwrap.wrap(
            field.description or "",
            width=96,
            initial_indent=f"  {name}={default}".ljust(23) + " ",
            subsequent_indent=" " * 24,
        )
    return "\n".join(lines)
