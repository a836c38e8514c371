"""What Hydra leaves on the disk for a sweep, noted so that a sweep which fails can take it back."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

# Each with the folders around it that were not there yet, innermost first.
_sweep_dirs: list[tuple[Path, list[Path]]] = []


class NoteFolder(Callback):
    """Notes the folder of a sweep just before Hydra makes it; named in conf/config.yaml."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before the first run of a sweep is composed."""
        sweep_dir = Path(config.hydra.sweep.dir)
        # os.path.exists, unlike Path.exists, never raises.
        new = [path for path in sweep_dir.parents if not os.path.exists(path)]  # noqa: PTH110
        _sweep_dirs.append((sweep_dir, new))


def clear_folders() -> None:
    """Remove what Hydra wrote of the noted sweeps, and the folders made around it, where empty."""
    while _sweep_dirs:
        sweep_dir, new = _sweep_dirs.pop()
        with suppress(OSError):
            (sweep_dir / "multirun.yaml").unlink(missing_ok=True)
            for folder in (*sweep_dir.iterdir(), sweep_dir, *new):
                folder.rmdir()
