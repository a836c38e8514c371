"""Command lines that do runs again, or do those beside them."""

import re
import shlex
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from so_clip.data.cards.card import USER_LAYOUTS
from so_clip.results.run_files import SKIPPED
from so_clip.system.paths import CONF_DIR

PROGRAM = "python -m so_clip"
# What names a run among those of its row.
_OF_CELL = ("dataset", "shots", "seed")

Overrides = tuple[str, ...]


def overrides_of(
    run: Mapping[str, Any], dataset: str, seed: int, own: Mapping[str, Any] | None = None
) -> Overrides:
    """Return the options of a run like another, but for its dataset and seed.

    Args:
        run: a row of the runs.
        dataset: of the new run.
        seed: of the new run; of no use for zero-shot CLIP, which draws nothing.
        own: of one's own images, what settings of a run on them have under `own`.
    """
    given = run.get("overrides")
    cell = {"dataset": str(own["layout"]) if own else dataset}
    if run["shots"]:
        cell |= {"shots": str(run["shots"]), "seed": str(seed)}
    if given is None:
        given = _of_settings(run)
    else:  # what was left out then can be left out now, unless it is to be another
        said = {_key(override) for override in given}
        cell = {key: text for key, text in cell.items() if key in said or text != str(run[key])}
    kept = [
        override
        for override in once(given)
        if _key(override) not in _OF_CELL and not _key(override).startswith("dataset.")
    ]
    pinned = _pinned(kept, run, set(cell) | {_key(override) for override in kept})
    where = _of_own(dataset, own) if own else ()
    return (*kept, *pinned, *(f"{key}={value}" for key, value in cell.items()), *where)


def own_of(settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what a run's settings say of one's own images; None if nothing that can be used."""
    own = settings.get("own")
    usable = isinstance(own, dict) and own.get("layout") in USER_LAYOUTS
    return own if usable else None


def _of_own(name: str, own: Mapping[str, Any]) -> Overrides:
    """Return the options of dataset=folder or dataset=csv with which a run found its images."""
    usual = _yaml(CONF_DIR / "dataset" / f"{own['layout']}.yaml")
    values = {"name": name} | {
        key: own[key] for key in usual if key in own and key not in ("layout", "name")
    }
    return tuple(
        f"dataset.{key}={_text(value)}" for key, value in values.items() if value != usual[key]
    )


@cache
def _parsed(override: str) -> Any:
    """Return an option as Hydra understands it, None for what it does not."""
    try:
        return OverridesParser.create().parse_override(override)
    except (HydraException, ValueError, RecursionError):
        return None


def _of_settings(run: Mapping[str, Any]) -> Overrides:
    """Return options that say what a run that did not record its own was: its row in the table."""
    named = re.findall(r"(?:^|, )([\w.]+)=", str(run["variant"]))
    values = {key: _setting(run["settings"], key) for key in named}
    for no_option in ("method", "split", "weights", "processes", SKIPPED["test"]):
        values.pop(no_option, None)  # it is in a variant's name only
    values = {key: value for key, value in values.items() if not key.startswith("own.")}
    data_root = _setting(run["settings"], "data_root")
    if data_root not in (None, default("data_root")):
        values["data_root"] = data_root
    options = tuple(f"{key}={_text(value)}" for key, value in values.items())
    return (f"method={run['method']}", *_backbone(run["settings"].get("backbone")), *options)


def default(key: str) -> Any:
    """Return the value of one of the top options where none is given."""
    return _yaml(CONF_DIR / "config.yaml")[key]


def placed(overrides: Overrides, results_dir: Path) -> Overrides:
    """Return the options with the folder that the run belongs to, if they do not name one."""
    usual = results_dir.absolute() == Path(default("results_dir")).absolute()
    if usual or any(_key(override) == "results_dir" for override in overrides):
        return overrides
    return (*overrides, f"results_dir={_text(str(results_dir))}")


def once(arguments: Iterable[str]) -> Overrides:
    """Return arguments without `force`: what is typed again is to do only what is missing."""
    return tuple(each for each in arguments if _key(each) != "force")


def _text(value: Any) -> str:
    """Return a value as Hydra reads it."""
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    text = str(value)
    if not isinstance(value, str):
        return text
    # In a list, so that a comma in it is told from one between values.
    plain = _parsed(f"x=[{text}]")
    if plain is not None and plain.value() == [value]:
        return text
    return QuotedString(text, Quote.single).with_quotes()


def _backbone(given: Any) -> Overrides:
    """Return the option that chooses a backbone, or several for one that has no name."""
    if not isinstance(given, dict):
        return ()
    for file in sorted((CONF_DIR / "backbone").glob("*.yaml")):
        named = _yaml(file)
        if all(named.get(key) == given.get(key) for key in ("architecture", "pretrained")):
            return (f"backbone={file.stem}", *_checkpoint(given))
    shown = {key: given.get(key) for key in ("architecture", "pretrained")}
    options = tuple(f"backbone.{key}={_text(value)}" for key, value in shown.items())
    return (*options, *_checkpoint(given))


def _checkpoint(given: Mapping[str, Any]) -> Overrides:
    return (f"backbone.checkpoint={_text(given['checkpoint'])}",) if given.get("checkpoint") else ()


def _pinned(kept: list[str], run: Mapping[str, Any], said: set[str]) -> Overrides:
    """Return the run's own values of what its experiment would sweep over under -m."""
    experiment = next((each for each in kept if _key(each) == "experiment"), "=")
    # By name among those that there are: the name comes from a file and may be any path.
    files = {file.stem: file for file in (CONF_DIR / "experiment").glob("*.yaml")}
    file = files.get(experiment.partition("=")[2])
    hydra = _yaml(file).get("hydra", {}) if file else {}
    swept = hydra.get("sweeper", {}).get("params", {})
    own = {key: _setting(run["settings"], key) for key in swept}
    return tuple(
        f"{key}={_text(value)}"
        for key, value in own.items()
        if key not in said and value is not None
    )


@cache
def _yaml(file: Path) -> dict[str, Any]:
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    return values if isinstance(values, dict) else {}


def _setting(settings: Any, key: str) -> Any:
    """Return an option's value, None for what is none or a whole group."""
    for part in key.split("."):
        settings = settings.get(part) if isinstance(settings, dict) else None
    return None if isinstance(settings, dict) else settings


def _key(override: str) -> str:
    return override.partition("=")[0]


def shell(overrides: Iterable[str], sweep: bool) -> str:
    """Return a command line for a POSIX shell."""
    return " ".join([PROGRAM, *(["-m"] if sweep else []), *map(shlex.quote, overrides)])


def compact(jobs: Iterable[Overrides]) -> list[tuple[Overrides, bool]]:
    """Return command lines that together do each job once and nothing else, few where possible.

    Options that alone differ between jobs become one with several values, seed=1,2 say; whatever is
    left over is no product, and takes a command line more.

    Returns:
        Overrides, and whether they are a sweep.

    Example:
        >>> compact([("method=so", "seed=1"), ("method=so", "seed=2"), ("method=sgd", "seed=1")])
        [(('method=so', 'seed=1,2'), True), (('method=sgd', 'seed=1'), False)]
    """
    # A job as its options, each with the values that it takes in turn.
    merged: dict[Any, None] = {}
    place: dict[tuple[str, str], int] = {}
    for job in jobs:
        options = [
            (key + equals, value) for key, equals, value in (each.partition("=") for each in job)
        ]
        for option in options:
            place.setdefault(option, len(place))
        merged[tuple((key, (value,)) for key, value in options)] = None
    for name in _merging_order({key for key, _ in place}):
        groups: dict[Any, set[str]] = {}
        for job in merged:
            others = tuple((key, None if key == name else values) for key, values in job)
            own = (values for key, values in job if key == name)
            groups.setdefault(others, set()).update(next(own, ()))
        merged = {}
        for others, values in groups.items():
            joined = tuple(sorted(values, key=lambda value: (_number(value), place[name, value])))
            merged[tuple((key, given or joined) for key, given in others)] = None
    return [
        (
            tuple(key + ",".join(values) for key, values in job),
            any(len(values) > 1 for _, values in job),
        )
        for job in merged
    ]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _merging_order(keys: set[str]) -> list[str]:
    """Begin with what has the most values in a grid, so that few products remain."""
    first = [key for key in ("seed=", "dataset=", "shots=") if key in keys]
    last = [key for key in ("method=",) if key in keys]
    flags = {key for key in keys if key.startswith("-")}  # take one value each
    return [*first, *sorted(keys - {*first, *last} - flags), *last]
