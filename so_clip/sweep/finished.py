"""Match the jobs of a sweep to finished runs before a launcher starts any job.

A launcher composes each job's configuration twice. This takes most of the time of a skipped job.
Here jobs with the same choices of groups share one composition, and only their options differ.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, open_dict
from tqdm import tqdm

from so_clip.config.sentence_parse import settings_of_kind
from so_clip.config.sentence_settings import SentenceSettings
from so_clip.config.settings import Settings
from so_clip.data.examples import SKIP
from so_clip.data.run_data import gather
from so_clip.data.sentences.read import gather_sentences
from so_clip.errors import InputError, show
from so_clip.fingerprint import KnownRuns, run_dir
from so_clip.results.job_files import SKIPPED, Job
from so_clip.results.run_folder import RunFolder
from so_clip.sentences.identity import sentence_run_dir
from so_clip.sentences.known import KnownEncoders
from so_clip.sweep.callback import RecordSweep
from so_clip.sweep.planned import flags_of
from so_clip.system.machine import concurrent_runs

if TYPE_CHECKING:
    from so_clip.run import Result

# One for each process: Hydra calls the task function again for every job of a sweep, and a launcher
# may hand several jobs to one process.
KNOWN_RUNS = KnownRuns()
KNOWN_ENCODERS = KnownEncoders()
# Launchers whose jobs run on this machine with the environment of this process.
_LOCAL_LAUNCHERS = (".BasicLauncher", ".JoblibLauncher")

Overrides = Sequence[str]
AnySettings = Settings | SentenceSettings


def known_folder(settings: AnySettings) -> tuple[Path, str] | None:
    """Return a run's folder and fingerprint if this process knows its lists and weights."""
    if isinstance(settings, SentenceSettings):
        return KNOWN_ENCODERS.find(settings)
    return KNOWN_RUNS.find(settings)


def finished(settings: AnySettings) -> "Result | None":
    """Return a finished run's result if this process knows its lists and weights already."""
    found = None if settings.placement.force else known_folder(settings)
    if found is None:
        return None
    from so_clip.run import Result

    folder, fingerprint = found
    metrics = RunFolder(folder).finished(fingerprint, settings.demanded_files)
    return None if metrics is None else Result(folder, metrics, skipped=True)


def put_finished_first(
    config: DictConfig, loader: Any, jobs: list[list[str]]
) -> tuple[list[list[str]], int]:
    """Record the jobs whose runs are finished as skipped, and put them before all others.

    Args:
        config: the sweep's own configuration.
        loader: Hydra's ConfigLoaderImpl.
        jobs: the overrides of each job.

    Returns:
        The jobs in their new order, and the number of finished ones.

    Raises:
        HydraException: a job cannot be composed. No job has started.
    """
    sweep = RecordSweep.sweep
    compose = Composer(config, loader)
    find = _Finder(concurrent_runs(config.hydra.launcher, len(jobs)))
    matches = sweep is not None and _is_local(config)
    results = []
    for overrides in tqdm(jobs, "find finished runs", disable=None, leave=False, unit="job"):
        composed = compose(overrides)
        results.append(find(composed) if matches else None)
    order = sorted(range(len(jobs)), key=lambda number: results[number] is None)
    jobs = [jobs[number] for number in order]
    flags, count = flags_of(config.hydra), 0
    if sweep is not None:
        sweep.planned = [[*flags, *overrides] for overrides in jobs]
        for number, result in enumerate(results[index] for index in order):
            if result is None:
                break
            count += 1
            accuracy_percent = float(result.metrics["accuracy_percent"])
            job = Job(sweep.planned[number], SKIPPED, str(result.folder))
            job.accuracy_percent = accuracy_percent
            sweep.job_files.write(number, job)
        sweep.finished, sweep.launched_at = count, time.time()
        sweep.write_plan()
    if count:
        runs = f"{count} of {len(jobs)} run{'' if len(jobs) == 1 else 's'}"
        show(f"{runs} finished before: skipped. force=true repeats them.")
    return jobs, count


def _is_local(config: DictConfig) -> bool:
    """Return whether jobs see the same machine, folder and environment as this process."""
    hydra = config.hydra
    changes = hydra.job.env_set or hydra.job.env_copy or hydra.job.chdir
    return not changes and str(hydra.launcher.get("_target_")).endswith(_LOCAL_LAUNCHERS)


class Composer:
    """Composes the configurations of a sweep's jobs, equal to those of Hydra's launchers.

    Jobs that choose the same groups share one composition. Their other overrides are applied to a
    copy of it, with the function that Hydra itself uses.

    Args:
        config: the sweep's own configuration.
        loader: Hydra's ConfigLoaderImpl.
    """

    def __init__(self, config: DictConfig, loader: Any) -> None:
        from hydra.core.override_parser.overrides_parser import OverridesParser

        parser = OverridesParser.create(config_loader=loader)
        self._config, self._loader = config, loader
        # A group in a folder of hydra.searchpath is unknown to the loader.
        self._shares = not config.hydra.searchpath
        self._parsed = cache(lambda text: parser.parse_overrides([text])[0])
        self._is_group = cache(loader.repository.group_exists)
        self._base: Callable[..., DictConfig] = cache(self._compose)

    def __call__(self, overrides: Overrides) -> DictConfig:
        """Return the composed configuration of one job, without Hydra's own part."""
        parsed = [self._parsed(text) for text in overrides]
        options = [override for override in parsed if self._is_option(override)]
        texts = [override.input_line for override in options]
        if not self._shares or any(isinstance(override.value(), dict) for override in parsed):
            return self._compose(*overrides)
        base = copy.deepcopy(self._base(*(text for text in overrides if text not in texts)))
        self._loader._apply_overrides_to_config(options, base)
        return base

    def _is_option(self, override: Any) -> bool:
        """Return whether an override sets an option and chooses no group."""
        key = override.key_or_group
        is_hydras = key.partition(".")[0].partition("/")[0] == "hydra"
        return override.package is None and not is_hydras and not self._is_group(key)

    def _compose(self, *overrides: str) -> DictConfig:
        composed: DictConfig = self._loader.load_sweep_config(self._config, list(overrides))
        with open_dict(composed):
            del composed["hydra"]
        return composed


class _Finder:
    """Finds the finished run of a composed job."""

    def __init__(self, concurrent: int) -> None:
        self._concurrent = concurrent
        self._names: Mapping[Path, set[str]] = {}
        self._failed: set[str] = set()

    def __call__(self, composed: DictConfig) -> "Result | None":
        """Return the result of the job's run, and None if the job has to be launched.

        The run of a job with bad input has no result either. Its job reports the problem.
        """
        try:
            settings = settings_of_kind(composed, self._concurrent)
            if settings.placement.force or not self._may_be_finished(settings):
                return None
            return finished(settings) or self._learned(settings)
        except (InputError, OSError):
            return None

    def _may_be_finished(self, settings: AnySettings) -> bool:
        """Return whether any run folder has the readable part of this run's name."""
        if isinstance(settings, SentenceSettings):
            folder = sentence_run_dir(settings, "")
        else:
            folder = run_dir(settings, "")
        if folder.parent not in self._names:
            names = {path.parent.name for path in folder.parent.glob("*/metrics.json")}
            self._names = {folder.parent: {name.rpartition("-")[0] for name in names}}
        return folder.name.rpartition("-")[0] in self._names[folder.parent]

    def _learned(self, settings: AnySettings) -> "Result | None":
        """Read the lists and the weights of a run if this process has not yet, and look again."""
        if isinstance(settings, SentenceSettings):
            return self._learned_encoder(settings)
        key = repr((settings.data.model_copy(update={"seed": 0, "shots": 0}), settings.backbone))
        if key in self._failed or settings.data.on_corrupt == SKIP:
            return None
        if KNOWN_RUNS.find(settings) is not None:
            return None
        from so_clip.build import base_of, load

        self._failed.add(key)  # unless nothing below raises an error
        evaluation = settings.evaluation
        data = gather(settings.data, cache_dir=evaluation.cache_dir, workers=evaluation.workers)
        base = KNOWN_RUNS.base(settings)
        if base is None:
            backbone = load(settings.backbone, settings.data.seed)
            base = base_of(settings.backbone, backbone, backbone.weights_sha256)
        KNOWN_RUNS.remember(settings, data, base)
        self._failed.discard(key)
        return finished(settings)

    def _learned_encoder(self, settings: SentenceSettings) -> "Result | None":
        data = gather_sentences(settings.data)
        key = repr((settings.model, len(data.card.label_names)))
        if key in self._failed or KNOWN_ENCODERS.base(settings, data) is not None:
            return None
        from so_clip.sentences.build import base_of, load

        self._failed.add(key)  # unless nothing below raises an error
        KNOWN_ENCODERS.remember(settings, data, base_of(load(settings, len(data.card.label_names))))
        self._failed.discard(key)
        return finished(settings)
