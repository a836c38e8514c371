"""The commands of `python -m so_clip`, parsed by typer. Usage errors become messages of ours."""

import os
import re
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from so_clip.errors import InputError, nearest

RUN = "run"
# Each command's arguments in an example, and what it does.
COMMANDS = {
    "prepare": (
        "dataset=eurosat data_root=FOLDER",
        "Download datasets, several (a,b) or all, into the layout that runs read.",
    ),
    "doctor": (
        "data_root=FOLDER",
        "Examine datasets: what is there, missing or damaged, and the command that repairs it.",
    ),
    "draw": (
        "dataset=dtd shots=4 seed=1 data_root=FOLDER",
        "Print the few-shot images of a run as JSON; needs only the split file.",
    ),
    "forecast": (
        "dataset=imagenet backbone=vit_l14 shots=16",
        "Forecast memory, FLOPs and disk space of a run; needs no data and no GPU.",
    ),
    "meta": (
        "experiment=smat data_root=FOLDER",
        "Meta-train sparse experts (SMAT) on few-shot tasks of many datasets.",
    ),
    "backbones": (
        "siglip_b16",
        "List the models of open_clip; show one's towers, roles of parameters, and methods.",
    ),
    "predict": (
        "results/runs/NAME photos/",
        "Classify images with the adapter of a run: the best classes, with confidences.",
    ),
    "export": (
        "results/runs/NAME --to transformers FOLDER",
        "Write a run's model as files of open_clip, OpenAI's CLIP, transformers or peft.",
    ),
    "evaluate": (
        "results/runs/NAME dataset=dtd",
        "Test the adapter of a run on another dataset or split, without training again.",
    ),
    "status": (
        "results/runs",
        "Show which runs are done, running, failed or missing, and the command for the rest.",
    ),
    "rescore": (
        "results/runs",
        "Score finished runs again from their kept logits: calibration, top-5, votes over seeds.",
    ),
    "table": ("results/runs", "Print all runs as a table of accuracy and a table of memory."),
    "report": (
        "results/runs -o FOLDER",
        "Write tables (CSV, Markdown, LaTeX, HTML), significance tests, plots and one page.",
    ),
    "tensorboard": (
        "results/runs -o FOLDER",
        "Write runs as event files for TensorBoard.",
    ),
}
COMPLETION_FLAGS = ("--install-completion", "--show-completion")
HELP_FLAGS = ("-h", "--help")
# The shell's completion function sets this variable. Its name contains the program's name.
COMPLETION_VARIABLE = "_SO_CLIP_COMPLETE"
_SETTINGS = {"help_option_names": [*HELP_FLAGS], "max_content_width": 100}


class Program(TyperGroup):
    """All commands. The module of a command is imported when the command is needed."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Return the names that completion offers."""
        return list(COMMANDS)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        """Return a command: the function `main` of its module, declared to typer."""
        if cmd_name not in (RUN, *COMMANDS):
            return None
        module = import_module(f"so_clip.cli.{cmd_name}")
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        text, summary = getattr(module, "HELP", None), COMMANDS.get(cmd_name, ("", ""))[1]
        app.command(help=text, short_help=summary, context_settings=_SETTINGS)(module.main)
        return typer.main.get_command(app)

    def shell_complete(self, ctx: typer.Context, incomplete: str) -> Any:  # type: ignore[override]
        """Complete the commands, and the flags of a run, which has no command name."""
        flags = self.get_command(ctx, RUN).shell_complete(ctx, incomplete)
        return [*super().shell_complete(ctx, incomplete), *flags]


def completes() -> bool:
    """Return whether the shell asks for completions instead of a command."""
    return COMPLETION_VARIABLE in os.environ


def call(arguments: Sequence[str]) -> None:
    """Call the command that `arguments` begin with.

    Raises:
        InputError: typer refuses the arguments.
    """
    app = typer.Typer(cls=Program, rich_markup_mode=None, callback=lambda: None)
    program: Any = typer.main.get_command(app)
    if completes():
        program.main(prog_name="so_clip")  # prints the completions and exits
    name = "so_clip" if arguments[0] in COMPLETION_FLAGS else "python -m so_clip"
    if arguments[0] in COMPLETION_FLAGS and len(arguments) > 1:
        raise InputError(f"{arguments[0]}: takes nothing else. It finds your shell itself.")
    command = program.get_command(None, arguments[0]) or program
    try:
        with program.make_context(name, list(arguments)) as context:
            program.invoke(context)
    except typer.Exit:  # after --help
        return
    except typer.TyperException as error:
        flags = [flag for parameter in command.params for flag in parameter.opts]
        raise _usage_error(error, arguments[0], flags) from error


def _usage_error(error: Any, command: str, flags: Sequence[str]) -> InputError:
    """Return typer's message as one of ours: flag, problem, nearest flag and way out."""
    way_out = f"`python -m so_clip {command} --help` lists all flags."
    if command == RUN:
        way_out = "Options are written OPTION=VALUE; `python -m so_clip --help options` lists them."
    flag, parameter = getattr(error, "option_name", ""), getattr(error, "param", None)
    message = error.message.removeprefix("Value error, ")
    message = re.sub(r"^Input should be (greater .*)", r"must be \1.", message)
    if extra := re.match(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", message):
        message = (
            f"too many arguments: {extra[1]}. A pattern such as results/runs/photos-* "
            "can fit several runs."
        )
    elif hasattr(error, "possibilities"):
        message = f"there is no such flag.{nearest(flag, flags)}"
    elif parameter is not None:
        flag = parameter.metavar or parameter.opts[-1]
        message = message or (
            "is missing. Runs are in results/runs, unless you gave results_dir."
            if flag == "RESULTS_DIR"
            else "is missing."
        )
    elif flag:
        message = message.removeprefix(f"Option {flag!r} ")
    return InputError(f"{flag or command}: {message} {way_out}")
