"""Turns arguments of Python calls into settings, as the command line does, without torch."""

import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.config.settings import DATA_OPTIONS, Settings
from so_clip.errors import InputError
from so_clip.system.commands import override

# Options that belong to another call than adapt.
_ELSEWHERE = {
    **dict.fromkeys(
        ("dataset", *(name for name in DATA_OPTIONS if name != "tasks")), "so_clip.few_shot"
    ),
    **dict.fromkeys(("backbone", "device", "precision"), "so_clip.load"),
}
_HYDRA = threading.RLock()


def settings_of(overrides: Sequence[str], config_dir: Path | None = None) -> Settings:
    """Return the settings that the command line would have with these overrides.

    Args:
        overrides: GROUP=CHOICE and OPTION=VALUE, as on the command line.
        config_dir: the user's own configuration folder.

    Raises:
        InputError: an option or a value cannot be used.
    """
    with _own_hydra():
        return from_config(compose(overrides, config_dir))


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Give Hydra and OmegaConf a state of their own, so that the program may use them too.

    One thread at a time: their state is global.
    """
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.core.singleton import Singleton
    from hydra.version import VersionBase
    from omegaconf.basecontainer import BaseContainer

    with _HYDRA:
        # Modules of plugins store configurations when they are first imported.
        Plugins.instance()
        ConfigStore.instance()
        instances, resolvers = Singleton._instances, BaseContainer._resolvers
        own: Any = dict(instances)
        own.pop(GlobalHydra, None)
        own |= {kind: deepcopy(own[kind]) for kind in (ConfigStore, VersionBase) if kind in own}
        Singleton._instances, BaseContainer._resolvers = own, dict(resolvers)
        try:
            yield
        finally:
            Singleton._instances, BaseContainer._resolvers = instances, resolvers


def overrides_of(options: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return options as overrides. A mapping holds the options below a name.

    {"memory": "small", "optimizer": {"T": 5}} becomes memory=small optimizer.T=5.

    Raises:
        InputError: a name is no text, or belongs to another call.
    """
    overrides = []
    for name, value in options.items():
        if not isinstance(name, str):
            raise InputError(f"{prefix}{name}: the name of an option must be a text.")
        whole = f"{prefix}{name}"
        owner = _ELSEWHERE.get(whole.partition(".")[0].lstrip("+~"))
        if owner is not None:
            raise InputError(f"{whole}: is an argument of {owner}. Give it there.")
        if whole.partition(".")[0] in ("tasks", "episodes"):
            raise InputError(
                f"{whole}: an adapted model has one set of classes. Sampled tasks are a run of the "
                "command line: python -m so_clip tasks=600 ..."
            )
        if whole == "save":
            raise InputError("save: a result always holds its adapter. Leave it out.")
        if isinstance(value, Mapping):
            overrides += overrides_of(value, f"{whole}.")
        else:
            overrides.append(override(whole, plain(value)))
    return overrides


def plain(value: Any) -> Any:
    """Return a value as the command line could give it: without NumPy's numbers, paths, tuples."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    return value


@contextmanager
def python_words(
    group: str, names: Iterable[str], replaced: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Name options in messages as Python does: checkpoint in place of backbone.checkpoint.

    Args:
        group: the prefix of the options on the command line.
        names: of the options.
        replaced: other texts and their replacements.
    """
    try:
        yield
    except InputError as error:
        # A file may have the name dataset.csv.
        option = rf"(?<![\w/\\.-]){group}\.(?=({'|'.join(names)})\b)"
        text = re.sub(option, "", str(error))
        for old, new in (replaced or {}).items():
            text = text.replace(old, new)
        if text == str(error):
            raise
        raise InputError(text) from error
