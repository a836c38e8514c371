"""Runs that are killed at random moments and repeated."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command import environment
from tests.helpers.made_datasets import write_eurosat
from tests.helpers.meta_runs import SMALL, contents

pytestmark = pytest.mark.slow

# Metrics that differ between a run and its repetition.
OWN = ("train_seconds", "evaluate_seconds", "features_from_cache")


def _killed(folder: Path, kills: int, *words: str) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.killed_runs", folder, str(kills), *words],
        capture_output=True,
        text=True,
        timeout=1800,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    stages: dict[str, int] = json.loads(done.stdout)
    return stages


def _result(folder: Path) -> dict[str, Any]:
    """Return the whole result in a run's folder."""
    metrics = json.loads((folder / "metrics.json").read_text())
    tables = {}
    for path in folder.glob("*.csv"):
        with path.open(newline="") as file:
            tables[path.name] = [*csv.reader(file)]
    names = sorted(path.name for path in folder.iterdir())
    return {"files": names, **tables, **{k: v for k, v in metrics.items() if k not in OWN}}


@pytest.mark.parametrize(
    ("kills", "overrides"),
    [
        (6, ("method=so", "optimizer.density_ratio=0.02", "evaluation.every_steps=15")),
        (2, ("method=clip_lora",)),
    ],
    ids=["so", "clip_lora"],
)
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path, kills, overrides):
    write_eurosat(tmp_path)
    words = [
        *("dataset=eurosat", f"data_root={tmp_path}", "shots=4", "schedule.batch_size=8"),
        *("threads=1", "evaluation.workers=0", "schedule.max_steps=40", "checkpoint_seconds=0.05"),
    ]
    stages = _killed(tmp_path / "results", kills, *words, *overrides)
    assert sum(stages.values()) == kills
    whole, *others = [_result(path) for path in sorted((tmp_path / "results").glob("[0-9]*"))]
    assert others
    assert not {"checkpoint.pt", "progress.json"} & {*whole["files"]}
    for other in others:
        assert [key for key in whole | other if whole.get(key) != other.get(key)] == []


def test_a_killed_meta_training_ends_as_an_undisturbed_one(tmp_path):
    write_eurosat(tmp_path)
    words = (*SMALL, "targets=[eurosat]", f"data_root={tmp_path}", "checkpoint_seconds=0.05")
    stages = _killed(tmp_path / "meta", 6, *words, "training.tasks=32")
    assert sum(stages.values()) == 6
    assert "training" in stages
    whole, *others = [contents(path) for path in sorted((tmp_path / "meta").glob("[0-9]*"))]
    assert others
    assert not [name for name in whole["files"] if re.match("checkpoint|progress|best", name)]
    for other in others:
        assert [key for key in whole | other if whole.get(key) != other.get(key)] == []
