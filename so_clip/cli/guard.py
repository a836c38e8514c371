"""The frame around every command: messages and exit codes."""

import os
import sys
from collections.abc import Callable

from so_clip.errors import DEBUG, report


def guarded(command: Callable[[list[str]], None]) -> int:
    """Call `command` with the process's arguments; report what it raises and return an exit code.

    0: done. 1: the run failed. 2: the input cannot be used. 130: interrupted. `--debug` anywhere
    among the arguments shows the traceback as well.
    """
    try:
        command([argument for argument in sys.argv[1:] if argument != DEBUG])
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read stdout (`| head`) has enough; Python would complain of it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as error:
        return report(error)
    except Exception as error:
        return report(error)
    return 0
