"""Hydra's plugin for sweeps. Hydra accepts plugins only from the namespace package hydra_plugins.

Other Hydra programs import this file too, so so_clip is imported only where a sweep starts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf


@dataclass
class SweeperConf(BasicSweeperConf):
    """The choice hydra/sweeper=so_clip."""

    _target_: str = "hydra_plugins.so_clip_sweeper.SkippingSweeper"


ConfigStore.instance().store(
    group="hydra/sweeper", name="so_clip", node=SweeperConf, provider="so_clip"
)


class SkippingSweeper(BasicSweeper):
    """Splits a sweep as Hydra's own sweeper does, and launches only jobs without a finished run."""

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Launch the jobs that `arguments` describe."""
        from so_clip.sweep.finished import put_finished_first

        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        parser = OverridesParser.create(config_loader=loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        (jobs,) = self.split_arguments(overrides, None)
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        jobs, finished = put_finished_first(self.config, loader, jobs)
        size = self.max_batch_size or len(jobs)
        returns = []
        for start in range(finished, len(jobs), size):
            returns.append(self.launcher.launch(jobs[start : start + size], initial_job_idx=start))
            for job in returns[-1]:
                _ = job.return_value  # raises the job's exception
        return returns
