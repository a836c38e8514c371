"""Exceptions for users, messages and exit codes."""

import difflib
import os
import sys
import traceback
from collections.abc import Iterable

from so_clip.escape import terminal

# Exit codes of commands.
FAILED, BAD_INPUT, INTERRUPTED, TERMINATED = 1, 2, 130, 143
DEBUG = "--debug"
debugging = DEBUG in sys.argv
# A longer message repeats someone's input. Its end has the way out.
MAX_MESSAGE = 4000


def without_middle(text: str, most: int = MAX_MESSAGE) -> str:
    """Return a text of at most about `most` characters: a longer one loses its middle."""
    if len(text) <= most:
        return text
    start, end = text[: most - most // 4], text[-(most // 4) :]
    return f"{start}… ({len(text) - most} characters are left out) …{end}"


class InputError(ValueError):
    """A value or file of the user cannot be used.

    The message is one sentence or a few lines. It names the value, its place and the way out. The
    command line prints it without a traceback and exits with code 2.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(without_middle(str(message)))


class RunFailed(RuntimeError):
    """A run failed. The message says why; a traceback would add nothing."""

    def __init__(self, message: object = "") -> None:
        super().__init__(without_middle(str(message)))


class RunBusy(InputError):
    """Another process is running this configuration."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, for example from a cluster or a machine that shuts down."""


def exit_code(error: BaseException) -> int:
    """Return the exit code of a command that ends with this error."""
    if isinstance(error, KeyboardInterrupt):
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    return BAD_INPUT if isinstance(error, InputError) else FAILED


def message_of(error: BaseException) -> str:
    """Return one message for people. An unexpected error begins with its type."""
    if isinstance(error, KeyboardInterrupt):
        return "terminated" if isinstance(error, Terminated) else "interrupted"
    expected = isinstance(error, (InputError, RunFailed))
    return without_middle(str(error) if expected else f"{type(error).__name__}: {error}")


def report(error: BaseException) -> int:
    """Print one message to stderr, with --debug the traceback too; return the exit code."""
    if debugging:
        print(terminal("".join(traceback.format_exception(error))), end="", file=sys.stderr)
    say(message_of(error))
    expected = isinstance(error, (InputError, RunFailed, KeyboardInterrupt))
    if not (expected or debugging):
        say(f"this error is unexpected and may be a bug. {DEBUG} shows where it happened.")
    return exit_code(error)


def say(message: str) -> None:
    """Print a message to stderr, without the control codes that foreign text may hold."""
    show_progress(f"so_clip: {without_middle(message)}")


class Notes:
    """Remarks to the user. The runs of a sweep repeat them, so a sweep prints each once."""

    def __init__(self) -> None:
        self._is_sweep, self._printed = False, set[str]()

    def __call__(self, message: str) -> None:
        """Print a remark to stderr, unless this process printed it earlier in the same sweep."""
        if message not in self._printed:
            say(message)
        if self._is_sweep:
            self._printed.add(message)

    def print_once(self, is_sweep: bool) -> None:
        """Print each of the next remarks once, or every time again."""
        if is_sweep != self._is_sweep:
            self._printed.clear()
        self._is_sweep = is_sweep


note = Notes()


def show_progress(text: str) -> None:
    """Print to stderr, without the program's name, how far a run is."""
    # In one write: print writes its line break later, and another process may write in between.
    print(f"{terminal(text)}\n", end="", file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Print a result to stdout, without the control codes that foreign text may hold.

    Raises:
        InputError: the disk with the file of stdout is full.
        BrokenPipeError: nobody reads stdout.
    """
    try:
        print(terminal(text), flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        drop_stdout()
        raise InputError(
            f"stdout: cannot be written: {reason_of(error)}. Free the disk, or write elsewhere."
        ) from error


def drop_stdout() -> None:
    """Discard further text to stdout, so that Python ends without an error about unwritten text."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def reason_of(error: BaseException) -> str:
    """Return the text of an error as one line; of an error of the system, only its reason."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:200]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x' or 'y'?" for the known names closest to `name`, or ""."""
    by_lower = {str(name).lower(): name for name in sorted(known)}
    lowered = difflib.get_close_matches(str(name).lower(), by_lower, n=2, cutoff=0.6)
    close = [by_lower[match] for match in lowered]
    return f" Did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
