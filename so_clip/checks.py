"""Typed options and the messages for values that cannot be used.

An option is a field of an `Options` class, declared once with its type, limits, default and help
text. `validated` builds such an object and turns pydantic's first error into an InputError that
names the value, its place, the nearest name and the way out. The functions below check one value
each; `key` is the option's name as the user writes it, and every message begins with it.
"""

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo

from so_clip.errors import InputError, nearest

# A million GiB.
MAX_MIB = 1e9
# More than anyone can count, and what a file of results can hold.
MAX_COUNT = 10**9
# File systems allow no longer names, and Linux no longer paths.
MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 4095

_OPTION_TEXTS = {
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "float_type": "must be a finite number",
    "finite_number": "must be a finite number",
    "string_type": "must be a text",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "greater_than_equal": "must be {ge} or more",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be {le} or less",
    "less_than": "must be below {lt}",
}


class Options(BaseModel):
    """Base of all groups of options: immutable, strictly typed, without unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True
    )


OptionsType = TypeVar("OptionsType", bound=Options)


def option(
    default: Any = ..., help: str = "", *, changes_results: bool = True, **limits: Any
) -> Any:
    """Declare an option: a pydantic field with help text.

    Args:
        default: the value if the user gives none. Without it, YAML files give the value.
        help: one line for `--help options`.
        changes_results: False if the option cannot change what a run measures. It is then left out
            of the run's fingerprint.
        limits: `ge`, `gt`, `le` or `lt`, as pydantic's Field has them.
    """
    extra: dict[str, Any] = {"changes_results": changes_results}
    return Field(default, description=help, json_schema_extra=extra, **limits)


def validated(
    options: type[OptionsType],
    values: Any,
    prefix: str = "",
    known: Iterable[str] | None = None,
    context: Mapping[str, Any] | None = None,
) -> OptionsType:
    """Return the values as an object of the class `options`.

    Args:
        options: the class.
        values: a mapping of option names to plain values.
        prefix: the prefix of the names on the command line, such as "schedule.".
        known: all names that the user may write there. Default: the fields of the class.
        context: what validators may look at, beside the prefix.

    Raises:
        InputError: about the first value that cannot be used.
    """
    names = list(known or options.model_fields)
    if not isinstance(values, Mapping):
        raise InputError(f"{prefix[:-1]}={values}: must hold the options {', '.join(names)}.")
    check_names(values, names, prefix)
    try:
        return options.model_validate(dict(values), context={"prefix": prefix, **(context or {})})
    except ValidationError as error:
        raise input_error(error, prefix) from error


def check_names(values: Mapping[Any, Any], names: Sequence[str], prefix: str = "") -> None:
    """Raise InputError about the first option that is missing or unknown."""
    for name in names:
        if name not in values:
            raise InputError(f"{prefix}{name} is missing. Give it, or leave out the ~.")
    for name in values:
        if name not in names:
            raise InputError(f"{prefix}{name}: there is no such option.{nearest(str(name), names)}")


def input_error(error: ValidationError, prefix: str = "") -> InputError:
    """Return pydantic's first error as an InputError "OPTION=VALUE: what the value must be."."""
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):  # a check of ours, which has the whole message
        return cause
    key = ".".join(str(part) for part in first["loc"])
    value = first["input"]
    if isinstance(value, str) and value.isdecimal():  # a text, and not the number that it shows
        value = repr(value)
    return InputError(f"{prefix}{key}={value}: {problem_text(first)}")


def problem_text(details: Mapping[str, Any]) -> str:
    """Return one sentence about what a value must be, from one of pydantic's error details."""
    kind, context = details["type"], details.get("ctx", {})
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", context["expected"])
        return f"must be {' or '.join(allowed)}.{nearest(str(details['input']), allowed)}"
    if kind == "value_error":
        return str(context["error"])
    # pydantic turns limits of floats into floats: 0 must not be shown as 0.0.
    limits = {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in context.items()
    }
    return _OPTION_TEXTS.get(kind, details["msg"]).format(**limits) + "."


def option_key(info: ValidationInfo) -> str:
    """Return the full name of the option that a validator looks at."""
    prefix = info.context["prefix"] if info.context else ""
    return f"{prefix}{info.field_name}"


def path(key: str, value: Any) -> Path:
    """Return a path with its ~ expanded; InputError if it is empty or not a path."""
    if value is None or value == "":
        raise InputError(f"{key} is empty: it needs a path, such as {key}=FOLDER.")
    # A folder may be called 2024, so whole numbers are paths. `True` is a mistake.
    if isinstance(value, bool) or not isinstance(value, (str, int, os.PathLike)):
        raise InputError(f"{key}={value}: must be a path, such as {key}=FOLDER.")
    text = unicode_text(key, str(os.fspath(value) if isinstance(value, os.PathLike) else value))
    if "\0" in text:
        raise InputError(f"{key}={text!a}: holds a NUL character. Choose another name.")
    longest = max(len(part.encode()) for part in re.split(r"[/\\]", text))
    if longest > MAX_NAME_BYTES or len(text.encode()) > MAX_PATH_BYTES:
        raise InputError(
            f"{key}={text[:60]}…: is too long: a name may have {MAX_NAME_BYTES} bytes, and a path "
            f"{MAX_PATH_BYTES}. Choose a shorter one."
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~NAME of an unknown user
        problem = "there is no such home folder. Write the path in full."
        raise InputError(f"{key}={text}: {problem}") from error


def device_name(value: Any) -> str:
    """Return the name of a device; InputError for another text."""
    if not re.fullmatch("auto|cpu|mps|cuda(:[0-9]{1,2})?", str(value)):
        raise InputError(f"device={value}: must be auto, cpu, cuda, cuda:N or mps.")
    return str(value)


def unicode_text(key: str, text: str) -> str:
    """Return the text; InputError if it cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{key}={text!a}: is not valid Unicode. Choose another name.") from None
    return text


def optional_path(key: str, value: Any) -> Path | None:
    """Return a path, or None for None; InputError as `path`."""
    return None if value is None else path(key, value)


def whole(key: str, value: Any, least: int, most: int | None = None) -> int:
    """Return a whole number of at least `least` and at most `most`; InputError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{key}={value}: must be a whole number, {least} or more.")
    if value < least:
        raise InputError(f"{key}={value}: must be {least} or more.")
    if most is not None and value > most:
        raise InputError(f"{key}={value}: must be {most} or less.")
    return value


def number(key: str, value: Any) -> float:
    """Return a finite number; InputError otherwise."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with suppress(OverflowError):  # a whole number of more digits than a float has
            if math.isfinite(finite := float(value)):
                return finite
    raise InputError(f"{key}={str(value)[:60]}: must be a finite number.")


def auto_mib(key: str, value: Any) -> float | None:
    """Return a number of MiB above 0, or None for auto; InputError otherwise."""
    if value == "auto":
        return None
    mib = value if value is None or isinstance(value, str) else number(key, value)
    if isinstance(mib, float) and 0 < mib <= MAX_MIB:
        return mib
    raise InputError(f"{key}={value}: must be auto, or a number above 0, at most {MAX_MIB:g}.")


def flag(key: str, value: Any) -> bool:
    """Return true or false; InputError otherwise."""
    if not isinstance(value, bool):
        raise InputError(f"{key}={value}: must be true or false.")
    return value


def auto_flag(key: str, value: Any) -> Any:
    """Return auto, true or false; InputError otherwise."""
    if value != "auto" and not isinstance(value, bool):
        raise InputError(f"{key}={value}: must be auto, true or false.")
    return value


def one_of(key: str, value: Any, allowed: tuple[str, ...]) -> str:
    """Return one of `allowed`; InputError, with the nearest of them, otherwise."""
    if value not in allowed:
        raise InputError(
            f"{key}={value}: must be {' or '.join(allowed)}.{nearest(str(value), allowed)}"
        )
    return value


def _path_option(value: Any, info: ValidationInfo) -> Path:
    return path(option_key(info), value)


def _optional_path_option(value: Any, info: ValidationInfo) -> Path | None:
    return optional_path(option_key(info), value)


def _mib_option(value: Any, info: ValidationInfo) -> float | None:
    return auto_mib(option_key(info), value)


def _count_option(value: Any, info: ValidationInfo) -> Any:
    key = option_key(info)
    if value == "auto":
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{key}={value}: must be auto, or a whole number, 1 or more.")
    # A number that a run's own files could not hold would make a finished run unreadable.
    return whole(key, value, least=1, most=MAX_COUNT)


def _flag_option(value: Any, info: ValidationInfo) -> Any:
    return auto_flag(option_key(info), value)


# Types of options. A path has its ~ expanded. MiB is None for auto.
PathOption = Annotated[Path, BeforeValidator(_path_option)]
OptionalPathOption = Annotated[Path | None, BeforeValidator(_optional_path_option)]
AutoMib = Annotated[float | None, BeforeValidator(_mib_option)]
AutoCount = Annotated[int | Literal["auto"], BeforeValidator(_count_option)]
AutoFlag = Annotated[bool | Literal["auto"], BeforeValidator(_flag_option)]
DeviceOption = Annotated[str, BeforeValidator(device_name)]
