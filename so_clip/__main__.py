"""`python -m so_clip`: one program for runs, sweeps and all other commands."""

import os
import sys

from so_clip.cli.guard import guarded


def main() -> int:
    """Run the command line of `python -m so_clip`; return the process's exit code."""
    # Without this variable, Hydra prints errors in its own words and exits.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    return guarded(_main)


def _main(arguments: list[str]) -> None:
    from so_clip.cli.program import COMMANDS, COMPLETION_FLAGS, HELP_FLAGS, RUN, call, completes

    if completes() or (arguments and arguments[0] in (RUN, *COMMANDS, *COMPLETION_FLAGS)):
        call(arguments)
    elif not arguments or any(argument.partition("=")[0] in HELP_FLAGS for argument in arguments):
        named = [argument for argument in arguments if argument in COMMANDS]
        if named:
            call([named[0], "--help"])
        else:
            from so_clip.cli.help import shown
            from so_clip.errors import show

            show(shown(arguments))
    else:
        call([RUN, *arguments])


if __name__ == "__main__":
    sys.exit(main())
