"""Compose the Hydra configuration. Errors of Hydra become messages for users."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from so_clip.checks import optional_path, path
from so_clip.config.settings import steps_in_epochs
from so_clip.config.trees import RUNS, SENTENCES, ConfigTree, declares, other_kind
from so_clip.config.user_data import dataset_choice
from so_clip.data.base_to_new import BASE_TO_NEW, base_count
from so_clip.data.find import find_card
from so_clip.errors import InputError, nearest, reason_of
from so_clip.system.commands import command, hydra_text, install, override, shell_word
from so_clip.system.paths import CONF_DIR

# Hydra's launchers, and the extra of this package that installs each.
LAUNCHERS = {
    "joblib": "joblib",
    "ray": "ray",
    "submitit_local": "submitit",
    "submitit_slurm": "submitit",
}


def register(overrides: Sequence[str] = (), tree: ConfigTree = RUNS) -> None:
    """Register with Hydra what is not a file under conf/.

    - the declared options of a tree, such as those of so_clip.config.settings
    - a choice of the group `dataset` for each card in datasets/, and in the folder of the user's
      cards if one of the `overrides` is cards_dir=FOLDER
    - the resolvers `${times:a,b}` (the product), `${gpus:}` (the number of GPUs, at least 1) and
      `${expanded:path}` (~ expanded)
    - `${epochs:n,dataset,shots,batch_size,drop_last}`: the steps of n epochs; see `_steps`
    - `${choose:key,{a:1,b:2},other}`: the value of the key, or the other value (null if left out)
    - `${up_to:number,{4:100,16:200},other}`: the value of the first bound that is not below the
      number, or the other value
    """
    from hydra.core.config_store import ConfigStore

    OmegaConf.register_new_resolver("times", lambda a, b: a * b, replace=True)
    OmegaConf.register_new_resolver("epochs", _steps, replace=True)
    OmegaConf.register_new_resolver("choose", _choose, replace=True)
    OmegaConf.register_new_resolver("up_to", _up_to, replace=True)
    OmegaConf.register_new_resolver("expanded", _expanded, replace=True)
    OmegaConf.register_new_resolver("gpus", _gpus, replace=True)
    store = ConfigStore.instance()
    store.store(name=tree.options, node=tree.declared())
    folders = [None, *_cards_dirs(overrides)]
    for name in dict.fromkeys(name for folder in folders for name in tree.cards(folder)):
        node = {"name": name} if tree is SENTENCES else {"name": name, "split_file": None}
        store.store(group="dataset", name=name, node=node)


def _cards_dirs(overrides: Sequence[str]) -> list[Path]:
    """Return the folders that cards_dir=FOLDER gives; several in a sweep."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    words = [word for word in overrides if re.match(r"\+{0,2}cards_dir=.", word)]
    folders: list[Any] = []
    for word in words:
        with readable_errors():
            found = OverridesParser.create().parse_override(word)
            values = list(found.sweep_iterator()) if found.is_sweep_override() else [found.value()]
        # A value of a sweep keeps its quotes, as an object with the text inside.
        folders += [getattr(value, "text", value) for value in values if value is not None]
    return [path("cards_dir", folder) for folder in folders]


def _expanded(folder: Any) -> str:
    # Path.expanduser raises for an unknown user. The path's own check names the option.
    return os.path.expanduser(str(folder))  # noqa: PTH111


def _choose(key: Any, values: Mapping[Any, Any], other: Any = None) -> Any:
    return values.get(key, other)


def _up_to(number: Any, values: Mapping[int, Any], other: Any = None) -> Any:
    if type(number) is not int:
        return other  # the check of the option names it
    return next((value for bound, value in values.items() if number <= bound), other)


def _steps(
    epochs: int,
    dataset: Any,
    shots: Any,
    batch_size: Any,
    drop_last: Any = False,
    *,
    _root_: DictConfig,
) -> int:
    """Return the steps in a number of epochs over a dataset's few-shot images."""
    if not all(type(value) is int and value > 0 for value in (shots, batch_size)):
        return 0  # the checks of these options name them
    images = _class_count(dataset, _root_) * shots
    return steps_in_epochs(epochs, images, batch_size=batch_size, drop_last=drop_last is True)


def _class_count(dataset: Any, config: DictConfig) -> int:
    """Return the number of classes to train on, from the card or from the user's own images."""
    options = OmegaConf.to_container(config["dataset"], resolve=True)
    data_root = path("data_root", config["data_root"])
    choice = dataset_choice(options, data_root)
    cards_dir = optional_path("cards_dir", config["cards_dir"])
    card = find_card(choice.dataset, data_root, choice.user_data, cards_dir=cards_dir)
    classes = card.sizes["classes"]
    return base_count(classes) if config["protocol"] == BASE_TO_NEW else classes


def _gpus() -> int:
    import torch

    return max(1, torch.cuda.device_count())


def choices(group: str, config_dir: Path | None = None, tree: ConfigTree = RUNS) -> list[Path]:
    """Return the files of a group's choices: the program's, and those of the user's folder."""
    folders = [tree.folder, *([config_dir] if config_dir else [])]
    return sorted(file for folder in folders for file in (folder / group).glob("*.yaml"))


def compose(
    overrides: Sequence[str], config_dir: Path | None = None, tree: ConfigTree = RUNS
) -> DictConfig:
    """Return the configuration that `overrides` select, as `python -m so_clip` would see it.

    Args:
        overrides: GROUP=CHOICE and OPTION=VALUE, as on the command line.
        config_dir: the user's own configuration folder, as --config-dir names it.
        tree: the configuration of runs, or another one.

    Raises:
        InputError: an unknown group option, key or malformed override.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    register(overrides, tree)
    folders = [CONF_DIR] if tree.folder != CONF_DIR else []
    folders += [] if config_dir is None else [config_dir.absolute()]
    if folders:
        searched = override("hydra.searchpath", [f"file://{folder}" for folder in folders])
        overrides = [*overrides, searched]
    with readable_errors(tree), initialize_config_dir(str(tree.folder), version_base="1.3"):
        return hydra_compose(tree.name, overrides=list(overrides))


@contextmanager
def readable_errors(tree: ConfigTree = RUNS) -> Iterator[None]:
    """Turn exceptions of Hydra and OmegaConf into InputError."""
    from hydra.errors import HydraException

    try:
        yield
    # Hydra raises ValueError for GROUP=null, TypeError for GROUP=[1], AssertionError for +=.
    except (
        HydraException,
        OmegaConfBaseException,
        ValueError,
        TypeError,
        AssertionError,
    ) as error:
        raise InputError(_explain(error, tree)) from error
    except (YAMLError, RecursionError) as error:  # in a folder of the user's own choices
        raise InputError(_unreadable(error)) from error
    except BrokenPipeError:  # stdout was closed, as by `--cfg job | head`
        raise
    except OSError as error:
        # Hydra creates the folder of a sweep before its first run.
        raise InputError(
            f"{error.filename or 'results_dir'} cannot be written: {error.strerror}. "
            "Choose another folder with results_dir=FOLDER."
        ) from error


def _explain(error: BaseException, tree: ConfigTree) -> str:
    from hydra.errors import MissingConfigException

    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        return _unknown_choice(error.missing_cfg_file, error.options, tree)
    first = (str(error).strip().splitlines() or ["it is malformed"])[0].rstrip(".")
    if isinstance(error, TypeError):
        first = f"something other than a name is given for a group ({first})"
    if first.startswith(("Could not override '", "Could not delete from config. '")):
        return _unknown_key(first.split("'")[1], tree)
    if first.startswith("Config group override must be a string"):
        return (
            "a group is given without a choice. Write GROUP=CHOICE, such as method=zero_shot; "
            "`python -m so_clip --help method` lists all choices."
        )
    if first.startswith("Ambiguous value"):
        return (
            f"{first}. Several values are a sweep of runs, with -m; other commands take one value. "
            "A list is written [a,b]."
        )
    return (
        f"the command line cannot be read: {first}. It takes GROUP=CHOICE and OPTION=VALUE; values "
        f"with special characters need quotes twice: {_example(error)}."
    )


def _unknown_choice(file: str, known: Sequence[str], tree: ConfigTree) -> str:
    """Return the message about a choice that its group does not have."""
    # The choice may contain slashes (dataset=../x). Hydra's own groups contain one too.
    group, _, choice = file.rpartition("/") if file.startswith("hydra/") else file.partition("/")
    if choice in LAUNCHERS and choice not in known:
        return (
            f"{group}={choice} needs a package that is not installed: "
            f"{install(f'so-clip[{LAUNCHERS[choice]}]')}."
        )
    if group == "dataset" and choice in (other := other_kind(tree)).cards(None):
        return (
            f"dataset={choice}: is a dataset of {other.about}, and this is a run on {tree.about}. "
            f"Write {command(*other.words, f'dataset={choice}', '...')}"
        )
    return (
        f"{group}={choice}: there is no {group} of that name."
        f"{nearest(choice, known)} Known: {', '.join(sorted(known))}."
    )


def _unknown_key(key: str, tree: ConfigTree) -> str:
    """Return the message about an option that the configuration does not have."""
    known = list(_keys(compose([], tree=tree)))
    group = key.rpartition(".")[0]
    if group and key in known:  # an option of the default choice; the user chose another
        return f"{key}: the chosen {group} has no such option. Leave it out."
    owners = [name for name in known if name.endswith(f".{key}")]
    owners = owners or [name for name in known if name.endswith(f"_{key}")]
    other = other_kind(tree)
    if not owners and declares(other, key):
        return (
            f"{key}: is an option of runs on {other.about}, and this is a run on {tree.about}. "
            f"Leave it out. `{tree.help}` lists all options."
        )
    close = f" Did you mean {' or '.join(map(repr, owners))}?" if owners else ""
    close = close or nearest(key, known) or nearest(key, {x.rpartition(".")[2] for x in known})
    return f"{key}: there is no such option.{close} `{tree.help}` lists them all."


def _unreadable(error: YAMLError | RecursionError) -> str:
    """Return the message about a configuration file that no YAML reader can read."""
    if isinstance(error, RecursionError):
        return (
            "the configuration names itself without an end: a file lists itself among its "
            "defaults, or its values are nested too deeply. Look at the files in --config-dir."
        )
    mark = getattr(error, "problem_mark", None)
    place = f"{mark.name}, line {mark.line + 1}" if mark else "a configuration file"
    return f"{place}: is not YAML: {getattr(error, 'problem', None) or reason_of(error)}."


def _example(error: BaseException) -> str:
    """Return the option that Hydra cannot read, with its value in both kinds of quotes."""
    name, equals, value = str(getattr(error, "override", None) or "").partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z]\w*(\.\w+)*", name) or not value:
        name, value = "data_root", "~/a=b"
    return shell_word(f"{name}={hydra_text(value)}")


def _keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in map(str, config):
        node = config._get_node(key)
        if isinstance(node, DictConfig):
            yield from _keys(node, f"{prefix}{key}.")
        yield f"{prefix}{key}"
