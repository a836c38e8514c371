"""The jobs of a sweep, as its command line gives them."""

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from so_clip.config.trees import CONFIG_NAME
from so_clip.errors import InputError
from so_clip.system.commands import SENTENCES
from so_clip.system.paths import CONF_DIR

MAX_JOBS = 100_000
# Sweepers that list all jobs at the start.
_LISTING_SWEEPERS = (".BasicSweeper", ".SkippingSweeper")


def planned_jobs(config: DictConfig) -> list[list[str]]:
    """Return the flags and overrides of each job, as Hydra's basic sweeper splits them.

    The list is empty for other sweepers, because they choose jobs as they go. It is empty too for
    overrides that cannot be split: the sweeper reports them.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    sweeper = config.hydra.sweeper
    if not str(sweeper.get("_target_")).endswith(_LISTING_SWEEPERS):
        return []
    params = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    with suppress(HydraException):
        overrides = parser.parse_overrides([*params, *as_given(config.hydra.overrides.task)])
        _check_size(overrides)
        jobs = BasicSweeper.split_arguments(overrides, None)[0]
        return [[*flags_of(config.hydra), *job] for job in jobs]
    return []


def flags_of(hydra: Any) -> list[str]:
    """Return the first word of the kind of run, and the flags of the user's own configuration.

    Args:
        hydra: Hydra's own part of a composed configuration.
    """
    paths = {source.provider: source.path for source in hydra.runtime.config_sources}
    flags = []
    if "main" in paths and Path(paths["main"]) != CONF_DIR:
        flags.append(f"--config-path={paths['main']}")
    if "command-line" in paths:
        flags.append(f"--config-dir={paths['command-line']}")
    name = hydra.job.config_name
    if name == SENTENCES:
        return [SENTENCES, *flags]
    return flags if name in (None, CONFIG_NAME) else [*flags, f"--config-name={name}"]


def as_given(overrides: Any) -> list[str]:
    """Return overrides as the user wrote them: interpolations in them are not resolved."""
    texts: Any = OmegaConf.to_container(overrides, resolve=False)
    return list(texts)


def _check_size(overrides: Sequence[Override]) -> None:
    """Refuse a sweep with too many jobs, or several folders, before its jobs are listed."""
    for override in overrides:
        value = override.value()
        if isinstance(value, RangeSweep) and not value.step:
            raise InputError(f"{override.input_line}: the step of a range must not be 0.")
        if str(override.input_line).endswith("="):
            raise InputError(f"{override.input_line}: has no values. Give at least one.")
        if override.get_key_element() == "results_dir" and override.is_sweep_override():
            raise InputError(
                f"{override.input_line}: a sweep has one folder. Start a sweep for each."
            )
    counts = {override.get_key_element(): _count(override) for override in overrides}
    jobs = math.prod(counts.values())
    if not jobs:
        empty = next(key for key, count in counts.items() if not count)
        raise InputError(f"{empty}: has no values, so the sweep has no runs. Give at least one.")
    if jobs > MAX_JOBS:
        largest = max(counts, key=lambda key: counts[key])
        raise InputError(
            f"{largest}: {counts[largest]} values make a sweep of {jobs} runs. A sweep can have "
            f"{MAX_JOBS} runs: give fewer values."
        )


def _count(override: Override) -> int:
    """Return the number of values of an option, without a list of a range's values."""
    value = override.value()
    if isinstance(value, RangeSweep):
        steps = ((value.stop or 0) - (value.start or 0)) / (value.step or 1)
        return max(0, math.ceil(steps)) if math.isfinite(steps) else MAX_JOBS + 1
    if isinstance(value, Glob):
        return sum(1 for _ in override.sweep_iterator())
    return len(value.list) if isinstance(value, ChoiceSweep) else 1
