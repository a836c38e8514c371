"""`python -m so_clip evaluate`: the adapter of a run, tested on other images."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from so_clip.checks import one_of, path
from so_clip.cli.arguments import RunOrFile, Words
from so_clip.cli.config_folders import CONFIG_DIR, check_config_folders
from so_clip.cli.run_checks import check_words
from so_clip.config.settings import GROUPS, declared_options
from so_clip.data.examples import SPLITS
from so_clip.errors import InputError, nearest, show

HELP = """Test the adapter of a run on other images, without training again.

The evaluation has a folder of its own in results_dir, with the files of a run. It names the adapter
that it tested. A finished evaluation is not repeated, unless force=true.

\b
  python -m so_clip evaluate results/runs/NAME dataset=dtd data_root=data
  python -m so_clip evaluate results/runs/NAME split=val
  python -m so_clip evaluate adapter.safetensors dataset=folder data_root=photos

\b
RUN_OR_FILE is the folder of a finished run, or an adapter file. Options without a value here are
those of the run; a file has no paths. These can be given:
  split=test           the list whose images are tested: train, val or test
  dataset, dataset.*   another dataset, your own images, or another split file
  protocol, template   the classes of the dataset that are tested, and their prompts
  data_root, cards_dir, on_corrupt
  evaluation.*, device, precision, memory, text_budget_mib, threads
  results_dir, force
  backbone.checkpoint  a local file with the base's weights
  backbone.architecture  local-dir:PATH, the base's folder if the run had it from a folder

Prompts are those of training. Other classes have prompts of the same kind (template=plain, and so
on). What some methods train belongs to the classes of training: other classes are refused.

Exit codes: 0 done, 1 it failed, 2 the input cannot be used."""
SPLIT = "split"
_GROUPS = ("dataset", "evaluation")
_OPTIONS = (
    *(SPLIT, "protocol", "template", "data_root", "cards_dir", "on_corrupt"),
    *("device", "precision", "memory", "text_budget_mib", "threads", "results_dir", "force"),
    *("backbone.architecture", "backbone.checkpoint"),
)
_CURVE = "evaluation.every_steps"


def main(
    run: RunOrFile,
    words: Words = None,
    config_dir: Annotated[
        str | None,
        typer.Option("-cd", CONFIG_DIR, metavar="FOLDER", help="A folder with more choices."),
    ] = None,
) -> None:
    """Test an adapter; see HELP."""
    given = words or []
    for word in given:
        if "=" not in word and not word.startswith("~"):
            raise InputError(
                f"{word}: is no OPTION=VALUE. evaluate tests one adapter, so a pattern must fit "
                "one run. Images are given by dataset=NAME, or dataset=folder with "
                f"data_root={'FOLDER' if Path(word, 'config.yaml').exists() else word}."
            )
    check_words(given)
    split, given = _split(given)
    _check_options(given, run)
    if config_dir is not None:
        check_config_folders({CONFIG_DIR: config_dir})
    choices = None if config_dir is None else path(CONFIG_DIR, config_dir)
    if any(word.startswith("precision=") for word in given):
        given = ["evaluation.precision=auto", *given]  # the run's own is not meant

    # torch takes seconds to import, so most bad words are refused before.
    from so_clip.adapters import open_saved
    from so_clip.config.early_checks import check_packages, check_places
    from so_clip.data.run_data import gather
    from so_clip.retest.evaluate import FINISHED, evaluate, summary
    from so_clip.retest.settings import chosen_settings
    from so_clip.runtime.device import cpu_threads

    adapter, folder = open_saved(run)
    chosen = chosen_settings(adapter, run, folder, given, choices)
    settings = chosen.settings
    check_packages(settings.method)
    check_places(settings)
    data = gather(
        settings.data.model_copy(update={"shots": 0}),
        cache_dir=settings.evaluation.cache_dir,
        workers=settings.evaluation.workers,
        split=split,
    )
    sha256 = hashlib.sha256(Path(adapter.place).read_bytes()).hexdigest()
    with cpu_threads(settings.placement.threads):
        result = evaluate(adapter, sha256, run, chosen, data)
    table = summary(result.metrics, result.folder)
    show(f"\n{FINISHED}\n\n{table}" if result.skipped else f"\n{table}")


def _split(words: Sequence[str]) -> tuple[str, list[str]]:
    """Return the list whose images are tested, and the other words."""
    values = [word.partition("=")[2] for word in words if word.partition("=")[0] == SPLIT]
    others = [word for word in words if word.partition("=")[0] != SPLIT]
    return one_of(SPLIT, (values or ["test"])[-1], SPLITS), others


def _check_options(words: Sequence[str], source: Path) -> None:
    """Raise InputError for an option of training, and for one that does not exist."""
    known = [*declared_options(), *GROUPS, "experiment", SPLIT]
    for word in words:
        name = word.partition("=")[0].lstrip("+~").partition("@")[0]
        group = name.partition(".")[0]
        if (group in _GROUPS or name in _OPTIONS) and name != _CURVE:
            continue
        if name == "transfer":
            raise InputError(f"{word}: evaluate tests one dataset at a time. Give dataset=NAME.")
        if name in known or group in GROUPS:
            raise InputError(
                f"{word}: belongs to training, and evaluate trains nothing: the adapter in "
                f"{source} is tested unchanged. Leave it out; `python -m so_clip --help` has runs."
            )
        raise InputError(
            f"{word}: there is no such option.{nearest(name, [*known, *_OPTIONS])} `python -m "
            "so_clip evaluate --help` lists the options of evaluate."
        )
