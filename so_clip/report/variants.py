"""Name the settings in which runs of one method differ: these names distinguish table rows."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pandas as pd

from so_clip.config.settings import AUTO, NO_DIFFERENCE, PIXEL_OPTIONS
from so_clip.data.user.dataset import UserData
from so_clip.results.run_files import SKIPPED, flat_options
from so_clip.version import RESULTS_VERSION

# Settings that never name a variant: they have a column of their own, follow from one, or do not
# change results. The checksum of a split file names it, not its path. `own` is the older name of
# `user_data`.
_IGNORED = frozenset(
    {
        *NO_DIFFERENCE,
        "dataset",
        "split_file",
        "backbone.architecture",
        "model.name",
        "method",
        "method_title",
        "shots",
        "seed",
        "adapter.seed",
        "optimizer.seed",
        "data_root",
        "evaluation.batch_size",
        "transfer",  # it is tested after everything else
        *(
            f"{group}.{field.name}"
            for group in ("own", "user_data")
            for field in fields(UserData)
            if field.name != "class_names"
        ),
    }
)
# Options that a user writes under another name than the one that runs record.
_PRINTED_NAMES = {
    "own.class_names": "dataset.class_names",
    "user_data.class_names": "dataset.class_names",
}
# Groups that choose a class. Runs record the choice as `name`, older runs its path as `_target_`.
_CHOICES = ("adapter", "optimizer")
# Any other value of these is named even if all runs have it: the numbers then mean something else.
_USUAL: dict[str, Any] = {
    "protocol": "all",
    "imbalance": None,
    "processes": 1,
    "tasks": 0,
    "episodes.varied_shots": False,
    "results_version": RESULTS_VERSION,
    "subset": "balanced",
    "model.token_types": True,
    "dense_bias_correction": "step",
    **{f"backbone.{option}": AUTO for option in PIXEL_OPTIONS},
}
# Columns of the runs that are named like settings: the number of processes (which share each batch
# under torchrun), skipped test images, and the results version.
_COLUMNS = ("processes", SKIPPED["test"], "results_version")

Flat = dict[str, str]
# The contents of a file with one name, by the date of the first run that used them.
AS_OF = "as of "


def variants(frame: pd.DataFrame) -> pd.Series:
    """Name each run by the settings that differ between the runs of its method.

    So runs with different densities, for example, are different table rows and are never averaged.
    A setting that follows from shots or dataset, as some schedules do, is not named. Settings of
    different results versions are not compared, since their format may differ.

    Args:
        frame: one line per run, with `method`, `method_title`, `dataset`, `shots`, `settings`.
    """
    flat = [dict(_flatten(settings)) for settings in frame["settings"]]
    for column in _COLUMNS:
        for options, value in zip(flat, frame.get(column, ()), strict=False):
            is_known = isinstance(value, (int, float)) and value == value
            if is_known and (value or column != SKIPPED["test"]):
                options[column] = f"{value:g}"
    for options in flat:
        for option, usual in _USUAL.items():
            if option in options and options[option] == str(usual):
                del options[option]
    _add_contents(frame, flat)
    varied = _varied(frame, flat)
    titles = frame.groupby("method_title")["method"].transform("nunique")
    names = []
    for method, options, methods in zip(frame["method"], flat, titles, strict=True):
        parts = [f"method={method}"] if methods > 1 else []
        parts += [f"{key}={options[key]}" for key in varied[method] if key in options]
        names.append(", ".join(parts))
    return pd.Series(names, index=frame.index, dtype=object)


def _add_contents(frame: pd.DataFrame, flat: list[Flat]) -> None:
    """Add an option for each file that has one name but several contents.

    A run without a checksum of its weights is an old run, and not named. A run without a checksum
    of its split has no split file.
    """
    names = pd.DataFrame({"dataset": frame["dataset"]})
    names["backbone"] = [
        str(settings.get("backbone", settings.get("model"))) for settings in frame["settings"]
    ]
    # Template, protocol and split decide on the prompts.
    names["prompts"] = [
        f"{dataset}, {settings.get('template')}, {settings.get('protocol')}"
        for dataset, settings in zip(frame["dataset"], frame["settings"], strict=True)
    ]
    files = pd.DataFrame(index=frame.index)
    files["split"] = [_file_name(settings.get("split_file")) for settings in frame["settings"]]
    files["weights"] = ""  # a file of weights is part of the backbone's name
    files["prompts"] = [options.get("dataset.class_names", "") for options in flat]
    for column, option, by, none_counts in (
        ("split_sha256", "split", "dataset", True),
        ("weights_sha256", "weights", "backbone", False),
        ("prompts_sha256", "prompts", "prompts", False),
    ):
        if column not in frame:
            continue
        contents = frame[column].map(lambda value: value if isinstance(value, str) else None)
        several = contents.groupby(names[by]).nunique(dropna=not none_counts) > 1
        for _, group in contents[names[by].map(several)].groupby(names[by]):
            by_file = _distinct(group, files[option])
            if by_file and option == "prompts":  # the row has dataset.class_names already
                continue
            labels = by_file or _first_dates(group, frame)
            for place, sha256 in zip(frame.index.get_indexer(group.index), group, strict=True):
                if sha256 in labels:
                    flat[place][option] = labels[sha256]


def _file_name(path: Any) -> str:
    # A comma separates the options of a row's name.
    return re.split(r"[/\\]", str(path))[-1].replace(",", "_") if path else ""


def _distinct(contents: pd.Series, files: pd.Series) -> dict[str, str]:
    """Return the file of each content if the files distinguish the contents, else nothing."""
    pairs = set(zip(contents.dropna(), files[contents.dropna().index], strict=True))
    found = dict(pairs)
    different = len(pairs) == len(found) == len(set(found.values()))
    return found if different and "" not in found.values() else {}


def _first_dates(contents: pd.Series, frame: pd.DataFrame) -> dict[str, str]:
    """Return for each content when the first run with it finished; its checksum if unknown."""
    found = sorted(set(contents.dropna()))
    finished = frame["finished_at"][contents.index] if "finished_at" in frame else contents.iloc[:0]
    first = finished.map(str).groupby(contents).min()
    for digits in (len("2026-11-22"), len("2026-11-22T12:00"), len("2026-11-22T12:00:00")):
        dates = [str(first.get(sha256, ""))[:digits].replace("T", " ") for sha256 in found]
        if len(set(dates)) == len(dates) and all(date[:1].isdigit() for date in dates):
            return {sha256: f"{AS_OF}{date}" for sha256, date in zip(found, dates, strict=True)}
    return {sha256: sha256[:8] for sha256 in found}


def _varied(frame: pd.DataFrame, flat: list[Flat]) -> dict[str, list[str]]:
    """Return by method the sorted options that differ between its runs with equal shots.

    Options are compared on one dataset and one architecture: an option with one value per dataset
    follows from the dataset, as the steps of some epochs do. An option with one value per
    architecture follows from the backbone, as its weights do. Only options about the pretrained
    weights are compared across datasets. A missing option counts as None. Options of an adapter or
    optimizer are compared between runs with the same adapter or optimizer.
    """
    groups: dict[tuple[Any, ...], list[Flat]] = defaultdict(list)
    columns = (frame[name] for name in ("method", "shots", "dataset", "settings"))
    for method, shots, dataset, settings, options in zip(*columns, flat, strict=True):
        alike = method, options.get("results_version"), shots, _architecture(settings)
        groups[(*alike, dataset)].append(options)
        weights = {key: options[key] for key in options if _is_about_weights(key)}
        groups[alike].append(weights)
    varied: dict[str, set[str]] = defaultdict(set)
    for (method, *_), runs in groups.items():
        values: dict[tuple[str, str], set[str]] = defaultdict(set)
        having, choices = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        for options in runs:
            for key, value in options.items():
                group, dot, _ = key.partition(".")
                choice = options.get(group, "") if dot and group in _CHOICES else ""
                values[key, choice].add(value)
                having[key, choice] += 1
                if key in _CHOICES:
                    choices[key, value] += 1
        for (key, choice), found in values.items():
            comparable = choices[key.partition(".")[0], choice] if choice else len(runs)
            if having[key, choice] < comparable:
                found.add("None")
            if len(found) > 1 or key in _USUAL:
                varied[method].add(key)
    return defaultdict(list, {method: sorted(keys) for method, keys in varied.items()})


def _architecture(settings: dict[str, Any]) -> str:
    """Return the backbone of a run on images, or the encoder of a run on sentences."""
    backbone, model = settings.get("backbone"), settings.get("model")
    if isinstance(model, dict):
        return str(model.get("name"))
    return str(backbone.get("architecture") if isinstance(backbone, dict) else backbone)


def _is_about_weights(option: str) -> bool:
    return option == "weights" or option.startswith(("backbone.", "model."))


def _flatten(settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield dotted options and their values as text."""
    for option, value in flat_options(settings).items():
        group, _, key = option.rpartition(".")
        if key in ("name", "_target_") and group in _CHOICES:
            yield group, str(value).rpartition(".")[2]
        elif option not in _IGNORED:
            yield _PRINTED_NAMES.get(option, option), str(value)
