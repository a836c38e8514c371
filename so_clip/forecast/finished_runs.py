"""Training operations (FLOPs) of finished runs, forecast for the steps that each run took.

A run does not count its operations. A forecast takes seconds for each kind of run, so runs of one
kind share it.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from so_clip.checks import OptionsType
from so_clip.config.settings import (
    NO_DIFFERENCE,
    Augment,
    BackboneChoice,
    Component,
    Evaluation,
    MethodChoice,
    Placement,
    Schedule,
    Settings,
)
from so_clip.data.cards.card import DatasetCard
from so_clip.data.choice import DataChoice
from so_clip.data.find import find_card, find_dataset
from so_clip.data.user.dataset import UserData
from so_clip.errors import InputError, reason_of
from so_clip.report.read import Runs
from so_clip.results.run_files import TASK
from so_clip.results.scores import SENTENCES
from so_clip.system.paths import CONF_DIR

# These options do not change the operations of a step.
_IGNORED = frozenset({*NO_DIFFERENCE, "seed", "split_file", "data_root", "method_title", "device"})

SENTENCES_REMARK = (
    "no FLOPs for runs on sentences: a batch has the tokens of its longest example, and runs do "
    "not record them. python -m so_clip forecast gives the most that a run takes."
)


def forecast_flops(runs: Runs) -> tuple[Runs, list[str]]:
    """Return the runs with `train_flops`, and a line for each kind of run that has no forecast."""
    known: dict[str, int] = {}
    found: list[float] = []
    remarks: dict[str, str] = {}
    for run in runs.frame.to_dict("records"):
        if run.get(TASK) == SENTENCES:
            remarks[SENTENCES] = SENTENCES_REMARK
            found.append(math.nan)
            continue
        key = _key(run)
        if key not in known and key not in remarks:
            try:
                known[key] = _forecast(run)
            except InputError as error:
                remarks[key] = f"{run['folder']}: no FLOPs: {error}"
        found.append(known.get(key, math.nan))
    flops = pd.Series(found, index=runs.frame.index, dtype=float)
    return replace(runs, frame=runs.frame.assign(train_flops=flops)), [*remarks.values()]


def _key(run: Mapping[Any, Any]) -> str:
    """Return all that decides the FLOPs of a run."""
    values = {key: value for key, value in run["settings"].items() if key not in _IGNORED}
    for group in ("adapter", "optimizer"):
        options = values.get(group)
        if isinstance(options, dict):
            values[group] = {key: value for key, value in options.items() if key != "seed"}
    values["evaluation"] = None
    return json.dumps([run.get("steps"), run.get("split_sha256"), values], sort_keys=True)


def _forecast(run: Mapping[Any, Any]) -> int:
    """Return the FLOPs of the steps that a run took; 0 if it took none."""
    steps = run.get("steps")
    if not isinstance(steps, int) or steps < 0:
        raise InputError(f"metrics.json does not have the number of steps (steps={steps})")
    if steps == 0:
        return 0
    # Imported here, because torch takes seconds to import.
    from so_clip.forecast.predict import forecast

    settings = _settings(run["settings"], steps)
    return int(forecast(settings, _card(settings, run)).get("training_flops", 0))


def _card(settings: Settings, run: Mapping[Any, Any]) -> DatasetCard:
    """Return the card of a run's dataset, unless the user's images have changed since the run."""
    choice = settings.data
    if choice.user_data is None:
        return find_card(
            choice.dataset,
            choice.data_root,
            template=choice.template,
            cards_dir=choice.cards_dir,
        )
    found = find_dataset(choice.dataset, choice.data_root, None, choice.user_data, choice.template)
    if found.splits.sha256 != run.get("split_sha256"):
        folder = choice.user_data.folder
        raise InputError(f"the images in {folder} have changed since the run")
    return found.card


def _settings(values: Mapping[str, Any], steps: int) -> Settings:
    """Return the settings of a record, with another number of steps."""
    try:
        return Settings(
            data=_options(DataChoice, values, user_data=UserData.from_json(values["user_data"])),
            backbone=_options(BackboneChoice, values["backbone"]),
            method=MethodChoice(
                name=values["method"],
                title=values["method_title"],
                adapter=_component("adapter", values["adapter"]),
                optimizer=_component("optimizer", values["optimizer"]),
            ),
            schedule=_options(Schedule, values["schedule"], max_steps=steps),
            augment=_options(Augment, values["augment"]),
            evaluation=_options(Evaluation, values["evaluation"]),
            placement=_options(
                Placement,
                values,
                text_budget_mib=values["text_budget_mib"] or "auto",
                image_budget_mib=values["image_budget_mib"] or "auto",
            ),
        )
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise InputError(f"its settings come from another version ({reason_of(error)})") from error


def _options(options: type[OptionsType], values: Mapping[str, Any], **changes: Any) -> OptionsType:
    """Return recorded values as an object of the class `options`.

    Older runs do not have options that were added since. The defaults of these options keep the
    earlier behaviour.
    """
    given = {name: values[name] for name in options.model_fields if name in values}
    return options.model_validate(given | changes)


def _component(group: str, values: Mapping[str, Any] | None) -> Component | None:
    """Return a recorded adapter or optimizer; its file in conf/ has its import path."""
    if values is None:
        return None
    options = {key: value for key, value in values.items() if key != "name"}
    config: Any = OmegaConf.load(CONF_DIR / group / f"{values['name']}.yaml")
    return Component(name=values["name"], target=config["_target_"], options=options)
