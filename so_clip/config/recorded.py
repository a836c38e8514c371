"""Options that repeat a finished run, from the config.yaml of its folder."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from so_clip.config import sentence_settings as sentences
from so_clip.config import settings
from so_clip.config.compose import choices, compose
from so_clip.config.run_settings import RunSettings
from so_clip.config.sentence_parse import settings_of_kind
from so_clip.config.trees import RUNS, SENTENCES, ConfigTree
from so_clip.data.plain_files import load_plain_yaml
from so_clip.errors import InputError
from so_clip.results.run_files import ADAPTER_FROM, CONFIG_FILE
from so_clip.system.commands import command, override
from so_clip.system.safe_open import read_plain

FROM = "--from"
# The key of config.yaml that no configuration of Hydra has.
_MARK = "method_title"
# The groups of both kinds of runs.
GROUPS = (*settings.GROUPS, *sentences.GROUPS)
# What a choice brings with it. Methods have no schedules for sentences.
_PARTS = {"method": ("adapter", "optimizer")}
_PARTS_OF_IMAGES = {"method": (*_PARTS["method"], "schedule")}
_TITLE = {"method": "method.name", "method_title": "method.title"}


def is_run_folder(folder: Path) -> bool:
    """Return whether a folder has the recorded configuration of a run."""
    try:
        return _MARK in _content(folder)
    except InputError:
        return False


def repeating(run: Path, given: Sequence[str], config_dir: Path | None = None) -> list[str]:
    """Return the options that make a recorded run, followed by the user's own.

    Only what differs from the choices' own values is listed, so that an option that depends on
    another (the seed of an optimizer) follows the user's options.

    Args:
        run: the run folder.
        given: the user's options. They replace the recorded values.
        config_dir: the user's own configuration folder, if the run was made with one.

    Raises:
        InputError: the folder holds no recorded run, or one that cannot be repeated.
    """
    record = recorded_options(run)
    names = {word.partition("=")[0].lstrip("+~") for word in given}
    if "experiment" in names:
        raise InputError(f"experiment goes with no {FROM}: the recorded run has all its options.")
    if ADAPTER_FROM in record:
        adapter = record[ADAPTER_FROM]
        raise InputError(
            f"{FROM} {run}: is an evaluation of a saved adapter, and trained nothing. To repeat "
            f"it: {command('evaluate', adapter, 'force=true')}. To repeat the training, give the "
            f"adapter's run with {FROM}."
        )
    return options_of_record(record, given, run, config_dir)


def recorded_options(run: Path, flag: str = FROM) -> dict[str, Any]:
    """Return the content of a run's config.yaml.

    Args:
        run: the run folder.
        flag: where the user named it, for messages.

    Raises:
        InputError: the folder holds no recorded run.
    """
    record = _content(run, flag)
    if _MARK not in record:
        raise InputError(f"{flag} {run}: its {CONFIG_FILE} is not that of a run.")
    return record


def kind_of_record(record: Mapping[str, Any]) -> ConfigTree:
    """Return the kind of run that a config.yaml records."""
    return SENTENCES if record.get("task") == sentences.TASK else RUNS


def options_of_record(
    record: Mapping[str, Any], given: Sequence[str], place: Path, config_dir: Path | None = None
) -> list[str]:
    """Return the options that make a record, followed by the user's own; see `repeating`.

    Args:
        record: as in config.yaml. Options that are missing in it keep their defaults.
        given: the user's options. They replace the recorded values.
        place: the run folder or file of the record, for messages.
        config_dir: see `repeating`.
    """
    names = {word.partition("=")[0].lstrip("+~") for word in given}
    _check_keys(record, place)
    tree = kind_of_record(record)
    # The choice of a dataset needs the folder of its card.
    cards = [word for word in given if word.startswith("cards_dir=")]
    if record.get("cards_dir") and not cards:
        cards = [override("cards_dir", record["cards_dir"])]
    made = partial(_made, tree=tree, config_dir=config_dir)
    options = _choices(record, place, cards, config_dir)
    # First the options that others depend on.
    for groups in ((), GROUPS):
        current = made(options).record()
        options += _differences(current, record, groups)
    return [*_without(options, names, _PARTS_OF_IMAGES if tree is RUNS else _PARTS), *given]


def _made(options: Sequence[str], *, tree: ConfigTree, config_dir: Path | None) -> RunSettings:
    """Return the settings that options of a kind of run make."""
    return settings_of_kind(compose(options, config_dir, tree))


def _content(run: Path, flag: str = FROM) -> dict[str, Any]:
    file = run / CONFIG_FILE
    try:
        content = load_plain_yaml(read_plain(file))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"{flag} {run}: this is no folder of a run: it has no {CONFIG_FILE}. Give a folder "
            "such as results/runs/NAME."
        ) from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or "it is not plain YAML"
        raise InputError(f"{flag} {run}: {file} cannot be read: {reason}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{flag} {run}: {file} holds no options.")
    return content


def _check_keys(values: Mapping[Any, Any], place: Path, prefix: str = "") -> None:
    """Refuse keys that no run records. A key such as _target_ would name code."""
    for key, value in values.items():
        if not re.fullmatch(r"[A-Za-z]\w*", str(key), re.ASCII):
            raise InputError(f"{place}: {prefix}{str(key)[:80]!r} is not the name of an option.")
        if isinstance(value, Mapping):
            _check_keys(value, place, f"{prefix}{key}.")


def _choices(
    record: Mapping[str, Any], place: Path, cards: Sequence[str], config_dir: Path | None
) -> list[str]:
    """Return GROUP=CHOICE for each group whose recorded choice has a name."""
    user_data = _part(record, "user_data")
    chosen = {"dataset": user_data.get("layout") if user_data else record.get("dataset")}
    known = partial(choices, config_dir=config_dir)
    tree = kind_of_record(record)
    if tree is RUNS:
        chosen["backbone"] = _backbone_group(known("backbone"), _part(record, "backbone"))
    method = record.get("method")
    chosen["method"] = method if method in [file.stem for file in known("method")] else None
    options = [override(name, value) for name, value in chosen.items() if value is not None]
    options += cards
    if tree is SENTENCES:
        options += _model_choice(known("model"), _part(record, "model"))
    current = _made(options, tree=tree, config_dir=config_dir).record()
    for group in ("adapter", "optimizer"):
        name = _part(record, group).get("name", "none")
        if name == (current[group] or {"name": "none"})["name"]:
            continue
        if name not in [file.stem for file in known(group)]:
            raise InputError(
                f"{place}: {group}.name={str(name)[:80]} is no {group} of the program. Add "
                "--config-dir FOLDER with the folder that the run was made with."
            )
        options.append(override(group, name))
    return options


def _backbone_group(files: Sequence[Path], backbone: Mapping[str, Any]) -> str | None:
    """Return the group with a backbone's architecture, and with its weights if one has them."""

    def states(file: Path, option: str) -> bool:
        return f"\n{option}: {backbone.get(option)}\n" in f"\n{_without_comments(file)}"

    fitting = [file for file in files if states(file, "architecture")]
    fitting.sort(key=lambda file: not states(file, "pretrained"))
    return fitting[0].stem if fitting else None


def _model_choice(files: Sequence[Path], model: Mapping[str, Any]) -> list[str]:
    """Return the options that choose an encoder: a named one, or its place."""
    source, name = model.get("source"), model.get("name")
    for file in files:
        if file.stem == name and f"\nsource: {source}\n" in f"\n{_without_comments(file)}\n":
            return [override("model", name)]
    return [override("model", "folder"), override("model.source", source)]


def _without_comments(file: Path) -> str:
    return re.sub(r" *#.*", "", file.read_text(encoding="utf-8"))


def _part(record: Mapping[str, Any], group: str) -> Mapping[str, Any]:
    part = record.get(group)
    return part if isinstance(part, Mapping) else {}


def _differences(
    current: Mapping[str, Any], record: Mapping[str, Any], groups: Sequence[str]
) -> Iterator[str]:
    """Yield an option for each recorded value that the current options do not give.

    Args:
        current: the record of the current options.
        record: the record of the run.
        groups: of options to look at, such as "schedule"; () for the options outside of groups.
    """
    for name, value in record.items():
        is_part = name in (*GROUPS, *_TITLE, "user_data", "split_file")
        if name == "force" or value == current.get(name) or is_part != bool(groups):
            continue
        if name == "dataset":
            if record.get("user_data"):
                yield override("dataset.name", value)
        elif name in _TITLE:
            yield override(_TITLE[name], value)
        elif name == "split_file":
            yield override("dataset.split_file", value)
        elif isinstance(value, Mapping):
            prefix = "dataset." if name == "user_data" else f"{name}."
            yield from _part_differences(prefix, current.get(name) or {}, value)
        else:
            yield override(name, value)


def _part_differences(
    prefix: str, current: Mapping[str, Any], record: Mapping[str, Any]
) -> Iterator[str]:
    for name, value in record.items():
        if name in current and current[name] == value:
            continue
        if isinstance(value, Mapping) and isinstance(current.get(name), Mapping):
            yield from _part_differences(f"{prefix}{name}.", current[name], value)
        else:
            yield override(f"{'' if name in current else '+'}{prefix}{name}", value)
    if prefix in ("adapter.", "optimizer."):
        yield from (f"~{prefix}{name}" for name in current if name not in record)


def _without(
    options: Sequence[str], names: set[str], parts: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return the options that the user has not given, alone or with a choice that brings them."""
    groups = {name for name in names if name in GROUPS}
    groups |= {part for name in groups for part in parts.get(name, ())}

    def is_given(option: str) -> bool:
        name = option.partition("=")[0].lstrip("+~")
        return name in names or name.partition(".")[0] in groups

    return [option for option in options if not is_given(option)]
