"""Floating-point operations of training, forecast for the steps that each run took.

A run does not count them; so_clip.forecast does, by doing the run's own steps on tensors without
values. That takes seconds for each kind of run, so what it finds is kept beside the runs.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from so_clip.config.settings import NO_DIFFERENCE, Augment, Evaluation, Schedule, Settings
from so_clip.data.cards.card import DatasetCard
from so_clip.data.find import find_card, find_dataset
from so_clip.data.user.dataset import UserData
from so_clip.errors import InputError
from so_clip.report.read import Runs
from so_clip.results.run_files import read_object
from so_clip.system import atomic
from so_clip.system.code_hash import code_sha256
from so_clip.version import RESULTS_VERSION

FILE = ".flops.json"
# The code that a forecast does: its own, and that of the steps.
_CODE = ("forecast", "adapt", "clip", "optim")
# Of the same number of steps, these make no difference to what a step computes.
_ASIDE = frozenset({*NO_DIFFERENCE, "seed", "split_file", "data_root", "method_title", "device"})


def forecast_flops(runs: Runs) -> tuple[Runs, list[str]]:
    """Return the runs with `train_flops`, and a line for each kind of run that has no forecast.

    Forecasts are kept in the results' folder, whose `.flops.json` may be deleted at any time. Those
    that fail are tried again the next time.
    """
    file = runs.results_dir / FILE
    known = {key: flops for key, flops in read_object(file).items() if type(flops) is int}
    found: list[float] = []
    remarks: dict[str, str] = {}
    for run in runs.frame.to_dict("records"):
        key = _key(run)
        if key not in known and key not in remarks:
            try:
                known[key] = _forecast(run)
                atomic.write_json(file, known)
            except InputError as error:
                remarks[key] = f"{run['folder']}: no FLOPs: {error}"
        found.append(known.get(key, math.nan))
    flops = pd.Series(found, index=runs.frame.index, dtype=float)
    return Runs(runs.results_dir, runs.frame.assign(train_flops=flops), runs.skipped), [
        *remarks.values()
    ]


def _key(run: Mapping[Any, Any]) -> str:
    """Return the SHA-256 of what decides on a run's FLOPs."""
    values = {key: value for key, value in run["settings"].items() if key not in _ASIDE}
    for group in ("adapter", "optimizer"):
        options = values.get(group)
        if isinstance(options, dict):
            values[group] = {key: value for key, value in options.items() if key != "seed"}
    values["evaluation"] = None
    made_by = [RESULTS_VERSION, code_sha256(*_CODE)]
    made_of = [run.get("steps"), run.get("split_sha256"), values]
    text = json.dumps([*made_by, *made_of], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _forecast(run: Mapping[Any, Any]) -> int:
    """Return the FLOPs of the steps that a run took; 0 for one that took none."""
    steps = run.get("steps")
    if not isinstance(steps, int) or steps < 0:
        raise InputError(f"it does not say how many steps it took ({steps})")
    if steps == 0:
        return 0
    # Only now: torch takes seconds to import.
    from so_clip.forecast.predict import forecast

    settings = _settings(run["settings"], steps)
    return int(forecast(settings, _card(settings, run)).get("training_flops", 0))


def _card(settings: Settings, run: Mapping[Any, Any]) -> DatasetCard:
    """Return the card of a run's dataset.

    Raises:
        InputError: one's own images are no more those of the run.
    """
    where, template = settings.data_root, settings.template
    if settings.own is None:
        return find_card(settings.dataset, where, template=template)
    found = find_dataset(settings.dataset, where, user=settings.own, template=template)
    if found.splits.sha256 != run.get("split_sha256"):
        raise InputError(f"the images in {settings.own.folder} are not those of the run any more")
    return found.card


def _settings(values: dict[str, Any], steps: int) -> Settings:
    """Return a run's settings as they were, but for the number of its steps.

    Raises:
        InputError: they are those of another version.
    """
    later: dict[str, Any] = {"checkpoint_seconds": 0.0, "force": False, "on_corrupt": "raise"}
    given = later | {"image_budget_mib": None} | values | {"at_once": 1}
    try:
        given |= {
            "schedule": Schedule(**given["schedule"] | {"max_steps": steps}),
            "augment": Augment(**given["augment"]),
            "evaluation": Evaluation(**{"decode_cache_gib": 0.0} | given["evaluation"]),
            "transfer": tuple(given["transfer"]),
            "own": UserData.from_json(given.get("own")),
            "data_root": Path(given["data_root"]),
            "results_dir": Path(given["results_dir"]),
        }
        return Settings(**{field.name: given[field.name] for field in fields(Settings)})
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"its settings are of another version ({error})") from error
