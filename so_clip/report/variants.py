"""What sets runs of one method apart: the settings that differ between them, by name and value."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pandas as pd

from so_clip.config.settings import NO_DIFFERENCE
from so_clip.data.user.dataset import UserData
from so_clip.results.run_files import SKIPPED

# Settings that have a column of their own, follow from one, or say where and not what. Which split
# a run used, its checksum tells.
_NOT_A_VARIANT = frozenset(
    {
        *NO_DIFFERENCE,
        *("dataset", "split_file", "backbone.architecture", "method", "method_title"),
        *("shots", "seed", "adapter.seed", "optimizer.seed", "data_root", "evaluation.batch_size"),
        "transfer",  # changes nothing that comes before it
        *(f"own.{field.name}" for field in fields(UserData) if field.name != "class_names"),
    }
)
_TARGET = "._target_"
# Named wherever it is another, even if all runs have it: their figures mean something else.
_USUAL: dict[str, Any] = {"protocol": "all", "imbalance": None, "processes": 1}


def variants(frame: pd.DataFrame) -> pd.Series:
    """Name each run by those settings that differ between the runs of its method.

    Runs of different density, say, are different rows of a table and never one average. A setting
    that follows from the shots or the dataset, as some schedules do, needs no name.

    Args:
        frame: a row a run, with `method`, `dataset`, `shots` and `settings`.
    """
    known: dict[int, list[tuple[str, str]]] = {}
    flat = [dict(_flatten(settings, known)) for settings in frame["settings"]]
    # No setting, but told to the runs by torchrun; each process has its share of every batch.
    for each, processes in zip(flat, frame.get("processes", ()), strict=False):
        if isinstance(processes, (int, float)) and processes == processes:
            each["processes"] = f"{processes:g}"
    tested = SKIPPED["test"]
    for each, count in zip(flat, frame.get(tested, ()), strict=False):
        if count == count and count:  # fewer images were tested
            each[tested] = f"{count:g}"
    for each in flat:
        for option, usual in _USUAL.items():
            if option in each and each[option] == str(usual):
                del each[option]
    _add_contents(frame, flat)
    varied = _varied(frame, flat)
    titles = frame.groupby("method_title")["method"].transform("nunique")
    names = []
    for method, each, methods in zip(frame["method"], flat, titles, strict=True):
        parts = [f"method={method}"] if methods > 1 else []
        parts += [_named(key, each[key]) for key in varied[method] if key in each]
        names.append(", ".join(parts))
    return pd.Series(names, index=frame.index, dtype=object)


def _add_contents(frame: pd.DataFrame, flat: list[dict[str, str]]) -> None:
    """Add a setting for each file with several contents where its name promises one.

    A run that does not say which weights it had is an old one; none of a split file has none.
    """
    given = pd.DataFrame({"dataset": frame["dataset"]})
    given["backbone"] = [str(settings.get("backbone")) for settings in frame["settings"]]
    # Which classes there are follows from these two, and from the split.
    asked = [(each.get("template"), each.get("protocol")) for each in frame["settings"]]
    given["prompts"] = [
        f"{name}, {each}" for name, each in zip(frame["dataset"], asked, strict=True)
    ]
    for column, name, by, none_counts in (
        ("split_sha256", "split", "dataset", True),
        ("weights_sha256", "weights", "backbone", False),
        ("prompts_sha256", "prompts", "prompts", False),
    ):
        if column not in frame:
            continue
        contents = frame[column].map(lambda value: value if isinstance(value, str) else None)
        several = contents.groupby(given[by]).nunique(dropna=not none_counts) > 1
        for each, sha256, differ in zip(flat, contents, given[by].map(several), strict=True):
            if differ and isinstance(sha256, str):
                each[name] = sha256[:8]


def _varied(frame: pd.DataFrame, flat: list[dict[str, str]]) -> dict[str, list[str]]:
    """Return by method, sorted, the settings that differ between its runs at some number of shots.

    Between those on one dataset: what has one value on each dataset follows from it, as the steps
    of so many epochs do. A setting that a run does not have counts as None. Options of optimizers
    (or adapters) are compared between runs with the same one.
    """
    groups: dict[tuple[Any, ...], list[dict[str, str]]] = defaultdict(list)
    columns = (frame[name] for name in ("method", "shots", "dataset"))
    for method, shots, dataset, each in zip(*columns, flat, strict=True):
        groups[method, shots, dataset].append(each)
        groups[method, shots].append({key: each[key] for key in each if _is_of_no_dataset(key)})
    varied: dict[str, set[str]] = defaultdict(set)
    for (method, *_), same in groups.items():
        values: dict[tuple[str, str], set[str]] = defaultdict(set)
        having, having_target = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        for each in same:
            for key, value in each.items():
                group, target = _whose(key, each)
                values[key, target].add(value)
                having[key, target] += 1
                if key.endswith(_TARGET):
                    having_target[group, value] += 1
        for (key, target), found in values.items():
            alike = having_target[key.partition(".")[0], target] if target else len(same)
            if having[key, target] < alike:
                found.add("None")
            if len(found) > 1 or key in _USUAL:
                varied[method].add(key)
    return defaultdict(list, {method: sorted(keys) for method, keys in varied.items()})


def _whose(option: str, settings: dict[str, str]) -> tuple[str, str]:
    """Return an option's group and, if it is one of an optimizer or adapter, which that is."""
    group = option.partition(".")[0]
    is_what_it_is = option.endswith(_TARGET)
    return group, "" if is_what_it_is else settings.get(f"{group}{_TARGET}", "")


def _named(option: str, value: str) -> str:
    """Return an option and its value; of a class, the name alone."""
    if option.endswith(_TARGET):
        return f"{option.removesuffix(_TARGET)}={value.rpartition('.')[2]}"
    return f"{option}={value}"


def _is_of_no_dataset(option: str) -> bool:
    """Whether this is about the pretrained weights, which no dataset decides on."""
    return option == "weights" or option.startswith("backbone.")


def _flatten(
    settings: dict[str, Any], known: dict[int, list[tuple[str, str]]], prefix: str = ""
) -> Iterator[tuple[str, str]]:
    """Yield the options and their values as text; groups that runs share are `known` by id."""
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            if id(value) not in known:
                known[id(value)] = list(_flatten(value, known, f"{name}."))
            yield from known[id(value)]
        elif name not in _NOT_A_VARIANT:
            yield name, str(value)
