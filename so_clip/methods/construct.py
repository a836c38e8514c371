"""Makes what a choice of the configuration describes, by import path and options."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from hydra.utils import get_object

from so_clip.errors import InputError, nearest
from so_clip.methods.adapter import Adapter

Made = TypeVar("Made")


class Choice(Protocol):
    """A class and its options, as the configuration has them.

    Attributes:
        target: the import path.
        options: of the constructor.
    """

    @property
    def target(self) -> str: ...

    @property
    def options(self) -> Mapping[str, Any]: ...


def make_adapter(choice: Choice) -> Adapter:
    """Return the adapter that a choice describes. Its class's errors become InputError."""
    constructor = constructor_of("adapter", choice.target)
    refuse_foreign_options("adapter", constructor, choice.options)
    try:
        made = constructor(**choice.options)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"adapter: {error}") from error
    return of_type(Adapter, made, "adapter", choice)


def of_type(needed: type[Made], made: Any, group: str, choice: Choice) -> Made:
    """Return the made object; InputError unless it has the type that the group needs."""
    if not isinstance(made, needed):
        raise InputError(
            f"{group}._target_={choice.target}: makes a {type(made).__name__}, not a "
            f"{needed.__module__}.{needed.__name__}."
        )
    return made


def constructor_of(group: str, target: str) -> Callable[..., Any]:
    """Return the class or function at an import path.

    Raises:
        InputError: there is none.
    """
    try:
        found = get_object(target)
    except Exception as error:  # importing a user's module can raise any exception
        raise InputError(f"{group}._target_={target}: cannot be imported. {error}") from error
    if not callable(found):
        raise InputError(f"{group}._target_={target}: must be a class or a function.")
    return found


def has_option(constructor: Callable[..., Any], name: str) -> bool:
    """Return whether a class or function names an option."""
    try:
        return name in inspect.signature(constructor).parameters
    except ValueError:  # some classes of Python itself have no signature
        return False


def refuse_foreign_options(
    group: str, constructor: Callable[..., Any], options: Mapping[str, Any]
) -> None:
    """Name an option that the constructor does not have; an experiment may have set it.

    Raises:
        InputError: with the nearest option that it has.
    """
    try:
        parameters = inspect.signature(constructor).parameters
    except ValueError:  # some classes of Python itself have no signature
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for key, value in options.items():
        if key not in parameters:
            raise InputError(
                f"{group}.{key}={value}: {constructor.__name__} has no such option. Leave it out, "
                f"or drop it with '~{group}.{key}' where an experiment sets it."
                f"{nearest(key, parameters)}"
            )
