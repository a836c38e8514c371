"""The frame around every command: messages and exit codes."""

import os
import sys
from collections.abc import Callable

from so_clip.errors import DEBUG, report


def guarded(command: Callable[[list[str]], None]) -> int:
    """Call `command` with the process's arguments; print errors and return the exit code.

    0: done. 1: the run failed. 2: the input cannot be used. 130: interrupted. 143: terminated.
    `--debug` anywhere in the arguments also prints the traceback.
    """
    try:
        command([argument for argument in sys.argv[1:] if argument != DEBUG])
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of stdout has enough (`| head`). Without this line, Python complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Exception, KeyboardInterrupt) as error:
        return report(error)
    return 0
