"""`python -m so_clip`: read the command line, compose the configuration, do the run."""

import os
import sys
import traceback
from collections.abc import Callable

from omegaconf import DictConfig

from so_clip.data.gather import gather
from so_clip.errors import InputError, RunFailed, nearest
from so_clip.record import check_writable
from so_clip.settings import from_config

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
DEBUG = "--debug"
MULTIRUN = ("-m", "--multirun")
HYDRA_FLAGS = (
    *MULTIRUN,
    *("-r", "--run", "-c", "--cfg", "--resolve", "-p", "--package", "-i", "--info", "--version"),
    *("--hydra-help", "-sc", "--shell-completion", "--experimental-rerun"),
    *("-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir"),
)
_debugging = DEBUG in sys.argv


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
        return _report(error)
    except Exception as error:
        return _report(error)
    return 0


def _main(arguments: list[str]) -> None:
    if "--help" in arguments or "-h" in arguments:
        from so_clip.manual import manual

        print(manual())
        return
    from so_clip.config import hydra_main

    _check_flags(arguments)
    # Hydra's parser wants its flags before or after all overrides, not among them.
    sys.argv[1:] = sorted(arguments, key=lambda argument: argument not in MULTIRUN)
    hydra_main(_task)


def _check_flags(arguments: list[str]) -> None:
    """Refuse a flag that neither this program nor Hydra has; Hydra would print its own usage."""
    for argument in arguments:
        if argument.startswith("-") and argument.partition("=")[0] not in HYDRA_FLAGS:
            raise InputError(
                f"{argument}: there is no such flag.{nearest(argument, HYDRA_FLAGS)} Options are "
                "written OPTION=VALUE; `python -m so_clip --help` lists them."
            )


def _task(composed: DictConfig) -> float:
    """Do one composed run. A failure leaves as SystemExit, which Hydra passes on without a word."""
    try:
        return _run(composed)
    except Exception as error:
        raise SystemExit(_report(error)) from error


def _run(composed: DictConfig) -> float:
    settings = from_config(composed)
    check_writable(settings.results_dir)
    data = gather(**settings.data)
    # Only now, since torch takes seconds to import and most bad input is refused without it.
    from so_clip.device import cpu_threads
    from so_clip.run import run

    with cpu_threads(settings.threads):
        result = run(settings, data)
    print(f"\n{result.table}")
    return result.metrics["accuracy_percent"]


def _report(error: BaseException) -> int:
    """Print one message to stderr and return the exit code that goes with it."""
    if _debugging:
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        print("so_clip: interrupted", file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, InputError):
        print(f"so_clip: {error}", file=sys.stderr)
        return BAD_INPUT
    expected = isinstance(error, RunFailed)
    print(f"so_clip: {'' if expected else type(error).__name__ + ': '}{error}", file=sys.stderr)
    if not (expected or _debugging):
        print(f"so_clip: {DEBUG} shows where it happened.", file=sys.stderr)
    return FAILED


if __name__ == "__main__":
    sys.exit(main())
