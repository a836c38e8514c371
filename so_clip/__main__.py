"""`python -m so_clip`: one program for runs, sweeps and all other commands."""

import os
import sys
from importlib import import_module

from so_clip.cli.guard import guarded
from so_clip.errors import InputError, nearest
from so_clip.system.torchrun import processes

COMMANDS = (
    *("prepare", "doctor", "draw", "forecast"),
    *("status", "table", "report", "tensorboard"),
)
MULTIRUN = ("-m", "--multirun")
HELP = ("-h", "--help")
HYDRA_FLAGS = (
    *MULTIRUN,
    *("-r", "--run", "-c", "--cfg", "--resolve", "-p", "--package", "-i", "--info", "--version"),
    *("--hydra-help", "-sc", "--shell-completion", "--experimental-rerun"),
    *("-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir"),
)


def main() -> int:
    """Run the command line of `python -m so_clip`; return the process's exit code."""
    # Hydra prints and exits by itself unless it is told to let exceptions through.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if sys.argv[1:] and sys.argv[1] in COMMANDS:
        command = import_module(f"so_clip.cli.{sys.argv.pop(1)}")
        return command.main()
    return guarded(_main)


def _main(arguments: list[str]) -> None:
    if any(each.partition("=")[0] in HELP for each in arguments):
        from so_clip.cli.help import shown

        print(shown(arguments))
        return
    from so_clip.sweep.job import task
    from so_clip.sweep.launch import hydra_main

    _check_flags(arguments)
    if processes() > 1 and not {*MULTIRUN}.isdisjoint(arguments):
        raise InputError(
            f"--multirun: torchrun's {processes()} processes do one run together. Leave it out, or "
            "start the sweep without torchrun."
        )
    # Hydra's parser wants its flags before or after all overrides, not among them.
    sys.argv[1:] = sorted(arguments, key=lambda argument: argument not in MULTIRUN)
    hydra_main(task)


def _check_flags(arguments: list[str]) -> None:
    """Refuse a flag that neither this program nor Hydra has; Hydra would print its own usage."""
    for argument in arguments:
        if argument.startswith("-") and argument.partition("=")[0] not in HYDRA_FLAGS:
            raise InputError(
                f"{argument}: there is no such flag.{nearest(argument, HYDRA_FLAGS)} Options are "
                "written OPTION=VALUE; `python -m so_clip --help options` lists them."
            )


if __name__ == "__main__":
    sys.exit(main())
