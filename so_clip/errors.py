"""The one exception a user is meant to read, and the help it offers."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence or a few lines that name the value, the place it came from and the
    way out. The command line prints it without a traceback and exits with code 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x' or 'y'?" for the known names closest to `name`, or ""."""
    close = difflib.get_close_matches(str(name).lower(), sorted(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
