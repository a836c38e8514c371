"""Arguments of Python calls become settings in the way of the command line. Imports no torch."""

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from so_clip.config.compose import compose
from so_clip.config.parse import from_config
from so_clip.config.settings import DATA_OPTIONS, Settings
from so_clip.errors import InputError
from so_clip.system.commands import override

# Options that belong to another call than adapt.
_ELSEWHERE = {
    **dict.fromkeys(("dataset", *DATA_OPTIONS), "so_clip.few_shot"),
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
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.plugins import Plugins
    from hydra.core.singleton import Singleton
    from omegaconf.basecontainer import BaseContainer

    with _HYDRA:
        Plugins.instance()  # its modules store configurations when they are first imported
        instances, resolvers = Singleton._instances, BaseContainer._resolvers
        own: Any = {kind: value for kind, value in instances.items() if kind is not GlobalHydra}
        own |= {kind: deepcopy(own[kind]) for kind in own if kind not in (Plugins, HydraConfig)}
        own[ConfigStore] = deepcopy(ConfigStore.instance())
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
        if whole == "save":
            raise InputError("save: a result always holds its adapter. Leave it out.")
        if isinstance(value, Mapping):
            overrides += overrides_of(value, f"{whole}.")
        else:
            overrides.append(override(whole, value))
    return overrides


@contextmanager
def python_words(group: str, replaced: Mapping[str, str] | None = None) -> Iterator[None]:
    """Name options in messages as Python does: checkpoint in place of backbone.checkpoint.

    Args:
        group: what stands before the options on the command line.
        replaced: other texts and their replacements.
    """
    try:
        yield
    except InputError as error:
        text = re.sub(rf"\b{group}\.(?=\w+(=|\b))", "", str(error))
        for old, new in (replaced or {}).items():
            text = text.replace(old, new)
        if text == str(error):
            raise
        raise InputError(text) from error
