"""The frame around every command: messages and exit codes."""

import os
import sys
from collections.abc import Callable

from so_clip.errors import DEBUG, report
from so_clip.sweep.interrupts import Interrupts
from so_clip.system.torchrun import processes


def guarded(command: Callable[[list[str]], None]) -> int:
    """Call `command` with the process's arguments; print errors and return the exit code.

    0: done. 1: the run failed. 2: the input cannot be used. 130: interrupted. 143: terminated.
    `--debug` anywhere in the arguments also prints the traceback. The first Ctrl-C or SIGTERM ends
    the command with a word, the second one kills it.
    """
    interrupts = Interrupts()
    if processes() == 1:  # torchrun stops its processes itself, and waits 30 s for a handler
        interrupts.watch()
    try:
        command([argument for argument in sys.argv[1:] if argument != DEBUG])
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of stdout has enough (`| head`). Without this line, Python complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Exception, KeyboardInterrupt) as error:
        return report(error)
    finally:
        interrupts.unwatch()
    return 0
