"""From a composed configuration to Settings, or a message about the first value that is wrong."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from so_clip.checks import (
    check_names,
    path,
    validated,
)
from so_clip.config.compose import choices
from so_clip.config.early_checks import check_adapter_options
from so_clip.config.kinds import check_images
from so_clip.config.settings import (
    DATA_OPTIONS,
    GROUPS,
    PARTS,
    TOP_LEVEL,
    Component,
    MethodChoice,
    Placement,
    Settings,
)
from so_clip.config.tasks import with_tasks
from so_clip.config.user_data import dataset_choice
from so_clip.data.choice import DataChoice
from so_clip.errors import InputError
from so_clip.optim.options import check_steps, checked_options


def from_config(config: DictConfig, parallel_runs: int = 1) -> Settings:
    """Check a composed configuration and return it as Settings.

    Args:
        config: as Hydra composes it.
        parallel_runs: how many runs share this machine's cores and memory. `auto` takes a share.

    Raises:
        InputError: naming the option, its value, and the values it may take.
    """
    check_images(config)
    values = plain(config)
    check_names(values, (*GROUPS, *TOP_LEVEL))
    context = {"parallel_runs": parallel_runs}
    top = {name: values[name] for name in Placement.model_fields}
    placement = validated(Placement, top, context=context)  # first: the cache is in results_dir
    method = method_choice(values)
    chosen = dataset_choice(values["dataset"], path("data_root", values["data_root"]))
    data = chosen._asdict() | {name: values[name] for name in DATA_OPTIONS}
    parts: dict[str, Any] = {
        name: validated(options, values[name], f"{name}.", context=context)
        for name, options in PARTS.items()
    }
    settings = Settings(
        data=validated(DataChoice, data),
        method=method,
        placement=placement,
        parallel_runs=parallel_runs,
        **parts,
    )
    settings.check_precision()
    settings = with_tasks(settings, config)
    if method.optimizer is not None:
        schedule, lr = settings.schedule, method.optimizer.options["lr"]
        check_steps(method.name, lr, schedule.lr_min, schedule.max_steps)
    return settings if settings.adapts else _without_shots(settings)


def plain(config: DictConfig) -> dict[str, Any]:
    """Return a composed configuration as plain values; InputError if it cannot be resolved."""
    with resolving():
        values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return values


@contextmanager
def resolving() -> Iterator[None]:
    """Turn errors of interpolations, such as seed=${seed}, into InputError."""
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except OmegaConfBaseException as error:
        if isinstance(error.__cause__, InputError):  # from a resolver that reads the user's images
            raise error.__cause__ from None
        first, *others = str(error).splitlines()
        key = next((line.split()[-1] for line in others if "full_key:" in line), "")
        place = f" ({key})" if key else ""
        raise InputError(
            f"the configuration cannot be resolved{place}: {first}. Write ${{NAME}} only for "
            "options that exist, and for no option that needs this one."
        ) from error


def method_choice(values: Mapping[str, Any]) -> MethodChoice:
    """Return the method, adapter and optimizer that a configuration's values describe."""
    adapter = _component("adapter", values["adapter"])
    optimizer = _component("optimizer", values["optimizer"])
    if optimizer is not None and adapter is None:
        raise InputError(
            "adapter=none opens no parameters, so the optimizer has nothing to train. "
            "Choose adapter=weights, or method=zero_shot to train nothing."
        )
    chosen = values["method"]
    known = [name for name in MethodChoice.model_fields if name not in ("adapter", "optimizer")]
    if isinstance(chosen, Mapping):
        chosen = {**chosen, "adapter": adapter, "optimizer": optimizer}
        known += ["adapter", "optimizer"]
    return validated(MethodChoice, chosen, "method.", known)


def _component(group: str, values: Any) -> Component | None:
    """Return the adapter or optimizer that a group's values describe; None for `none`."""
    needed = ("name", "_target_")
    if not isinstance(values, Mapping):
        raise InputError(f"{group}={values}: must hold the options {', '.join(needed)}.")
    for key in needed:
        if key not in values:
            raise InputError(f"{group}.{key} is missing. Give it, or leave out the ~.")
    if values["_target_"] is None:
        return None
    for key in needed:
        if not isinstance(values[key], str):
            raise InputError(f"{group}.{key}={values[key]}: must be a text.")
    _check_target(group, values["name"], values["_target_"])
    options = {str(key): value for key, value in values.items() if key not in needed}
    for key in options:
        if key.startswith("_"):
            raise InputError(f"{group}.{key}: there is no such option. Leave it out.")
    if group == "adapter" and values["name"] in targets_of(group):
        check_adapter_options(options)
    if group == "optimizer":
        if "lr" not in options:
            raise InputError(
                "optimizer.lr is missing; every optimizer needs a rate. Leave out the ~."
            )
        options = checked_options(options)
    return Component(name=values["name"], target=values["_target_"], options=options)


def _check_target(group: str, name: str, target: str) -> None:
    """Refuse another class under a name of conf/: fingerprints hold the name and not the class."""
    named = targets_of(group).get(name, target)
    if target != named:
        raise InputError(
            f"{group}._target_={target}: {group}.name={name} stands for {named}. Give the other "
            f"class a name of its own too: {group}.name=NAME."
        )


@cache
def targets_of(group: str, config_dir: Path | None = None) -> dict[str, str]:
    """Return the import path of each class that conf/ names in a group.

    Args:
        group: adapter or optimizer.
        config_dir: the user's own configuration folder, read too.
    """
    targets = {}
    for file in choices(group, config_dir):
        match = re.search(r"^_target_: *(\S+)", file.read_text(encoding="utf-8"), re.MULTILINE)
        if match:
            targets[file.stem] = match[1]
    return targets


def _without_shots(settings: Settings) -> Settings:
    """Drop what cannot change zero-shot CLIP, so that a sweep measures it once.

    Shots and seed choose the tasks of a run of tasks, and stay.
    """
    no_draw = {"shots": 0, "seed": 0, "split_protocol": "none", "imbalance": None}
    if settings.data.tasks:
        no_draw = {"split_protocol": "none"}
    no_steps = {"batch_size": 0, "max_steps": 0, "stop_loss": 0.0, "lr_min": 0.0}
    no_steps |= {"drop_last": False, "crops": 0}
    return settings.model_copy(
        update={
            "data": settings.data.model_copy(update=no_draw),
            "schedule": settings.schedule.model_copy(update=no_steps),
            "augment": settings.augment.model_copy(update={"scale": (1.0, 1.0), "flip": False}),
            "evaluation": settings.evaluation.model_copy(update={"every_steps": 0}),
        }
    )
