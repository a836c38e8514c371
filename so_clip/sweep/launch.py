"""Start a run or a sweep with Hydra."""

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig

from so_clip.config.compose import CONFIG_NAME, readable_errors, register
from so_clip.sweep.callback import closing
from so_clip.system.paths import CONF_DIR


def hydra_main(task: Callable[[DictConfig], Any]) -> None:
    """Call `task` under `hydra.main`, which reads sys.argv and starts sweeps and launchers.

    A sweep ends with its summary, see so_clip.sweep.callback.
    """
    import hydra

    register()
    entry = hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=CONFIG_NAME)
    # Without readable_errors, Hydra prints errors in its own words and exits with code 1.
    with closing(), readable_errors():
        entry(task)()
