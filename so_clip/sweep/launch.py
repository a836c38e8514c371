"""Start a run or a sweep with Hydra."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from so_clip.config.compose import readable_errors, register
from so_clip.config.trees import CONFIG_NAME, RUNS, ConfigTree
from so_clip.sweep.callback import closing
from so_clip.system.paths import CONF_DIR


def hydra_main(
    task: Callable[[DictConfig], Any],
    show_runs: Callable[[Sequence[Path]], None],
    tree: ConfigTree = RUNS,
) -> None:
    """Call `task` under `hydra.main`, which reads sys.argv and starts sweeps and launchers.

    A sweep ends with a table and its summary, see so_clip.sweep.callback.

    Args:
        task: does one composed run.
        show_runs: prints a table of the runs in the given folders.
        tree: the kind of runs. sys.argv has its name as --config-name, unless it is the usual one.
    """
    import hydra

    register(sys.argv[1:], tree)
    entry = hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=CONFIG_NAME)
    # Without readable_errors, Hydra prints errors in its own words and exits with code 1.
    with closing(show_runs), readable_errors(tree):
        entry(task)()
