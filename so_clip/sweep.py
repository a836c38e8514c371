"""What Hydra leaves on the disk for a sweep, noted so that a sweep which fails can take it back."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

_sweep_dirs: list[Path] = []


class NoteFolder(Callback):
    """Notes the folder of a sweep just before Hydra makes it; named in conf/config.yaml."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before the first run of a sweep is composed."""
        _sweep_dirs.append(Path(config.hydra.sweep.dir))


def clear_folders() -> None:
    """Remove what Hydra wrote of the noted sweeps, and the folders around it that are empty."""
    while _sweep_dirs:
        sweep_dir = _sweep_dirs.pop()
        with suppress(OSError):
            (sweep_dir / "multirun.yaml").unlink(missing_ok=True)
            for folder in (*sweep_dir.iterdir(), sweep_dir, *sweep_dir.parents[:2]):
                folder.rmdir()
