"""`python -m so_clip OPTION=VALUE ...`: one run, or a sweep with -m."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from so_clip import __version__
from so_clip.checks import path
from so_clip.cli.config_folders import check_config_folders
from so_clip.cli.run_checks import check_flags, check_words, package_errors
from so_clip.errors import InputError, say, show
from so_clip.system.commands import command
from so_clip.system.torchrun import processes

if TYPE_CHECKING:
    from so_clip.config.trees import ConfigTree

# The tables at the end of a sweep. Reading more runs would keep the user waiting.
_ACCURACIES = ("accuracy", "base_accuracy", "new_accuracy", "harmonic_mean", "transfer", "tasks")
_MAX_TABLE_RUNS = 2000
CFG_TYPES = Literal["job", "hydra", "all"]
INFO_TYPES = Literal["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]


def main(
    context: typer.Context,
    words: Annotated[list[str] | None, typer.Argument(metavar="OPTION=VALUE")] = None,
    multirun: Annotated[
        bool,
        typer.Option("-m", "--multirun", help="Run every combination of comma-separated values."),
    ] = False,
    cfg: Annotated[
        CFG_TYPES | None,
        typer.Option("-c", "--cfg", help="Print the composed configuration. Run nothing."),
    ] = None,
    resolve: Annotated[
        bool, typer.Option("--resolve", help="With --cfg: fill in the interpolations.")
    ] = False,
    package: Annotated[
        str | None, typer.Option("-p", "--package", help="With --cfg: print this part.")
    ] = None,
    info: Annotated[
        INFO_TYPES | None,
        typer.Option("-i", "--info", help="Print how Hydra composes the configuration."),
    ] = None,
    from_run: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="RUN", help="Repeat the run in this folder; OPTION=VALUE changes it."
        ),
    ] = None,
    config_path: Annotated[
        str | None, typer.Option("-cp", "--config-path", help="Use another configuration folder.")
    ] = None,
    config_name: Annotated[
        str | None, typer.Option("-cn", "--config-name", help="Use another main configuration.")
    ] = None,
    config_dir: Annotated[
        str | None, typer.Option("-cd", "--config-dir", help="A folder with more choices.")
    ] = None,
    shell_completion: Annotated[
        bool, typer.Option("-sc", "--shell-completion", help="Hydra's completion of options.")
    ] = False,
    hydra_help: Annotated[bool, typer.Option("--hydra-help", help="Hydra's own help.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Adapt a model with a few examples, and measure it: one run, or a sweep with -m.

    `python -m so_clip --help` explains the options.
    """
    words = words or []
    given = {name for name, value in context.params.items() if value not in (None, False, [], ())}
    if not given:
        from so_clip.cli.help import shown

        show(shown([]))
        return
    if version:
        if len(given) > 1:
            raise InputError("--version: prints the version and takes nothing else.")
        show(f"so_clip {__version__}")
        return
    check_flags(context.params)
    tree, words = _kind(words, config_name)
    if info is not None:
        logging.raiseExceptions = False  # Hydra logs it, and stdout may be closed (`| head`)
    if not shell_completion:
        check_words(words, multirun)
    if multirun and processes() > 1:
        raise InputError(
            f"--multirun: torchrun's {processes()} processes do one run together. Leave it out, or "
            "start the sweep without torchrun."
        )
    folders = {"--config-path": config_path, "--config-dir": config_dir}
    check_config_folders({flag: folder for flag, folder in folders.items() if folder is not None})
    is_folder = config_dir is not None and "://" not in config_dir
    own_choices = path("--config-dir", config_dir) if is_folder else None
    if from_run is None:
        from so_clip.config.kinds import check_experiments

        check_experiments(words, tree, own_choices)
    else:
        tree, words = _repeating(from_run, words, own_choices, tree)
    if tree.words:
        context.params["config_name"] = tree.name
    # Hydra reads sys.argv, and only accepts flags before or after all overrides.
    sys.argv[1:] = [*_hydra_flags(context.params), *words]
    from so_clip.sweep.job import task
    from so_clip.sweep.launch import hydra_main

    with package_errors(package):
        hydra_main(task, _show_runs, tree)


def _show_runs(folders: Sequence[Path]) -> None:
    """Print the accuracy of a sweep's runs as tables, and the command for the whole report."""
    from so_clip.report.formats.screen import show_tables
    from so_clip.report.read import read_runs
    from so_clip.report.tables import make_tables

    results_dir = folders[0].parent
    try:
        if len(folders) <= _MAX_TABLE_RUNS:
            tables = make_tables(read_runs(results_dir, folders))
            show("")
            show_tables([table for table in tables if table.measure.name in _ACCURACIES])
    except InputError as error:  # someone removed a run meanwhile
        say(f"there is no table of this sweep: {error}")
    show(f"All tables, plots and a page of all runs:\n  {command('report', results_dir)}")


def _repeating(
    from_run: str, words: list[str], config_dir: Path | None, tree: "ConfigTree"
) -> tuple["ConfigTree", list[str]]:
    """Return the kind of a recorded run, and the options that repeat it."""
    from so_clip.config.recorded import FROM, kind_of_record, recorded_options, repeating
    from so_clip.config.trees import RUNS

    run = path(FROM, from_run)
    recorded = kind_of_record(recorded_options(run))
    if tree not in (RUNS, recorded):
        raise InputError(
            f"{FROM} {run}: is a run on {recorded.about}. Leave out the first word: "
            f"{command(FROM, run, '...')}"
        )
    return recorded, repeating(run, words, config_dir)


def _kind(words: list[str], config_name: str | None) -> tuple["ConfigTree", list[str]]:
    """Return the kind of run, from the first word or from --config-name, and the options."""
    from so_clip.config.kinds import kind_of
    from so_clip.config.trees import SENTENCES

    tree, options = kind_of(words)
    if tree is SENTENCES and config_name not in (None, SENTENCES.name):
        raise InputError(
            f"--config-name {config_name}: {words[0]} has a main configuration of its own. Leave "
            "out one of the two."
        )
    return (SENTENCES if config_name == SENTENCES.name else tree), options


def _hydra_flags(parameters: dict[str, object]) -> list[str]:
    """Return the flags of a run as Hydra spells them."""
    flags = []
    for name, value in parameters.items():
        if name not in ("words", "from_run") and value:
            flag = "-m" if name == "multirun" else f"--{name.replace('_', '-')}"
            # Hydra looks for a relative folder beside the module that starts it.
            is_folder = name in ("config_path", "config_dir") and "://" not in str(value)
            text = str(path(flag, value).absolute()) if is_folder else str(value)
            flags += [flag] if value is True else [flag, text]
    return flags
