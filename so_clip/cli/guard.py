"""The frame around every command: messages and exit codes."""

import os
import sys
from collections.abc import Callable

from so_clip.errors import DEBUG, drop_stdout, report
from so_clip.sweep.interrupts import Interrupts
from so_clip.system.torchrun import processes


def guarded(command: Callable[[list[str]], None]) -> int:
    """Call `command` with the process's arguments; print errors and return the exit code.

    0: done. 1: the run failed. 2: the input cannot be used. 130: interrupted. 143: terminated.
    `--debug` anywhere in the arguments also prints the traceback. The first Ctrl-C or SIGTERM ends
    the command with a short message, the second one kills it.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed; the next opened file would take its descriptor
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115
    interrupts = Interrupts()
    if processes() == 1:  # torchrun stops its processes itself, and waits 30 s for a handler
        interrupts.watch()
    try:
        command([argument for argument in sys.argv[1:] if argument != DEBUG])
        sys.stdout.flush()
    except BrokenPipeError:  # stdout was closed, as by `| head`
        drop_stdout()
    except (Exception, KeyboardInterrupt) as error:
        return report(error)
    finally:
        interrupts.unwatch()
    return 0
