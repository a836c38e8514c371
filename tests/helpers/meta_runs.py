"""Small meta-trainings: digits as the source, a made EuroSAT as the target, few tasks."""

import csv
import json
from pathlib import Path
from typing import Any

from tests.helpers.command import Outcome, call

# Two classes a task and one block keep a task short.
SMALL = (
    *("meta", "backbone=tiny", "sources=[digits]", "adapter.position=last-1"),
    *("adapter.experts=2", "adapter.granularity=row"),  # files are small
    *("episodes.ways=[2,2]", "episodes.queries=2", "episodes.images=6"),
    *("training.tasks=14", "training.tasks_per_update=2", "validate_every=8"),
    *("validation_tasks=2", "test_tasks=2", "threads=1", "workers=0"),
)
# metrics.json has these, and no repetition has the same. The settings hold places.
OWN = ("train_seconds", "validation_seconds", "test_seconds", "settings")


def meta(folder: Path, data_root: Path, *words: object) -> Outcome:
    """Meta-train in this process into `folder`/meta, with a made EuroSAT as the target."""
    places = (f"data_root={data_root}", f"results_dir={folder / 'meta'}")
    return call(*SMALL, "targets=[eurosat]", *places, *words)


def run_folder(folder: Path) -> Path:
    """Return the only run folder of meta-trainings in `folder`."""
    (found,) = (path for path in (folder / "meta").iterdir() if path.is_dir())
    return found


def rows(file: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with file.open(newline="") as opened:
        return [*csv.DictReader(opened)]


def contents(run: Path) -> dict[str, Any]:
    """Return all that a finished run wrote and that a repetition must write again."""
    found: dict[str, Any] = {
        path.name: path.read_bytes()
        for path in run.iterdir()
        if path.suffix in (".csv", ".safetensors")
    }
    metrics = json.loads((run / "metrics.json").read_text())
    found["files"] = sorted(path.name for path in run.iterdir())
    return found | {key: value for key, value in metrics.items() if key not in OWN}
