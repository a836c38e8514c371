"""The one exception a user is meant to read, and the help it offers."""

import difflib
import sys
import traceback
from collections.abc import Iterable

# What a command exits with.
FAILED, BAD_INPUT, INTERRUPTED, TERMINATED = 1, 2, 130, 143
DEBUG = "--debug"
debugging = DEBUG in sys.argv


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence or a few lines that name the value, the place it came from and the
    way out. The command line prints it without a traceback and exits with code 2.
    """


class RunFailed(RuntimeError):
    """A run that began could not end well; the message says why, and no traceback adds to it."""


class RunBusy(InputError):
    """Another process is doing this very run."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, such as from a cluster or a machine that shuts down, where it is not deadly."""


def exit_code(error: BaseException) -> int:
    """Return what a command that ends with this error exits with."""
    if isinstance(error, KeyboardInterrupt):
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    return BAD_INPUT if isinstance(error, InputError) else FAILED


def message_of(error: BaseException) -> str:
    """Return one message for people; what nobody expected begins with its kind."""
    if isinstance(error, KeyboardInterrupt):
        return "terminated" if isinstance(error, Terminated) else "interrupted"
    expected = isinstance(error, (InputError, RunFailed))
    return str(error) if expected else f"{type(error).__name__}: {error}"


def report(error: BaseException) -> int:
    """Print one message to stderr, with --debug the traceback too, and return the exit code."""
    if debugging:
        traceback.print_exception(error)
    say(message_of(error))
    expected = isinstance(error, (InputError, RunFailed, KeyboardInterrupt))
    if not (expected or debugging):
        say(f"that was not expected, and may be a bug: {DEBUG} shows where it happened.")
    return exit_code(error)


def say(message: str) -> None:
    """Print a message to stderr, of something that ends nothing."""
    print(f"so_clip: {message}", file=sys.stderr)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x' or 'y'?" for the known names closest to `name`, or ""."""
    by_lower = {str(each).lower(): each for each in sorted(known)}
    lowered = difflib.get_close_matches(str(name).lower(), by_lower, n=2, cutoff=0.6)
    close = [by_lower[each] for each in lowered]
    return f" Did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
