"""The processes that torchrun started for one run, read without importing torch."""

import os
import sys

from so_clip.system.commands import command


def processes() -> int:
    """Return the number of processes in this run; 1 without torchrun."""
    # Other launchers set WORLD_SIZE for single processes, too. Only torchrun sets this variable.
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 1
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Return the number of this process among them, from 0."""
    return int(os.environ["RANK"]) if processes() > 1 else 0


def command_line() -> str:
    """Return the command that starts the processes of this run again."""
    nodes = os.environ.get("GROUP_WORLD_SIZE", "1")
    words = ["--nnodes", nodes] if nodes != "1" else []
    words += ["--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", str(processes()))]
    return command(*words, "-m", "so_clip", *sys.argv[1:], program=("torchrun",))
