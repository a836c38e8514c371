"""`python -m so_clip`: read the command line, and hand it to Hydra, which calls so_clip.task."""

import os
import sys
from collections.abc import Callable

from so_clip.errors import DEBUG, InputError, nearest, report
from so_clip.launched import processes

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
    return guarded(_main)


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


def _main(arguments: list[str]) -> None:
    if any(each.partition("=")[0] in HELP for each in arguments):
        from so_clip.manual import shown

        print(shown(arguments))
        return
    from so_clip.config import hydra_main
    from so_clip.task import task

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
