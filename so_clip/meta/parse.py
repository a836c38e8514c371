"""From the words of the command line to MetaSettings, or a message about the first wrong value."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from so_clip.checks import Options, check_names, validated
from so_clip.config.compose import choices, compose
from so_clip.config.parse import plain
from so_clip.config.trees import ConfigTree
from so_clip.errors import InputError, nearest
from so_clip.meta.settings import (
    BEST,
    PARTS,
    TOP_LEVEL,
    MetaData,
    MetaPlacement,
    MetaSettings,
    default_options,
)
from so_clip.system.paths import CONF_DIR

META = ConfigTree(
    CONF_DIR / "meta", "meta_options", default_options, "python -m so_clip meta --help"
)


def meta_settings(words: Sequence[str], config_dir: Path | None = None) -> MetaSettings:
    """Return the settings that words choose.

    Args:
        words: GROUP=CHOICE and OPTION=VALUE.
        config_dir: the user's own configuration folder.

    Raises:
        InputError: naming the option, its value, and the values it may take.
    """
    _check_experiment(words, config_dir)
    return from_config(compose(words, config_dir, META))


def from_config(config: DictConfig) -> MetaSettings:
    """Check a composed configuration and return it as MetaSettings; InputError as above."""
    values = plain(config)
    check_names(values, (*PARTS, *TOP_LEVEL))
    parts: dict[str, Any] = {
        name: validated(options, values[name], f"{name}.") for name, options in PARTS.items()
    }
    top: dict[str, type[Options]] = {"data": MetaData, "placement": MetaPlacement}
    for name, options in top.items():
        parts[name] = validated(options, {key: values[key] for key in options.model_fields})
    settings = MetaSettings(**parts)
    _check(settings)
    return settings


def _check(settings: MetaSettings) -> None:
    """Refuse options that are out of range, or that contradict each other."""
    data, training = settings.data, settings.training
    _ = settings.adapter.model, training.options  # they check their numbers
    settings.episodes.most_ways(settings.shots)
    if training.tasks % training.tasks_per_update:
        rest = training.tasks % training.tasks_per_update
        raise InputError(
            f"training.tasks={training.tasks}: is no multiple of training.tasks_per_update="
            f"{training.tasks_per_update}, so the last tasks would change nothing. Give "
            f"training.tasks={training.tasks - rest + training.tasks_per_update}."
        )
    if data.select == BEST and not data.validation_tasks:
        raise InputError(
            f"select={BEST}: needs validation tasks. Give validation_tasks=120, or select=last."
        )


def _check_experiment(words: Sequence[str], config_dir: Path | None) -> None:
    """Refuse an experiment of runs, which Hydra would find in conf/ too."""
    known = [file.stem for file in choices("experiment", config_dir, META)]
    for word in words:
        name, _, value = word.partition("=")
        if name.lstrip("+") == "experiment" and value not in (*known, "null"):
            raise InputError(
                f"{word}: there is no experiment of that name for meta."
                f"{nearest(value, known)} Known: {', '.join(sorted(known))}."
            )
