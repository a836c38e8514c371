"""Runs of sampled tasks that are killed at random moments and repeated."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command import environment
from tests.helpers.made_datasets import write_eurosat

pytestmark = pytest.mark.slow

# What differs between a run and its repetition.
OWN = ("train_seconds", "evaluate_seconds", "features_from_cache")


def _result(folder: Path) -> dict[str, Any]:
    metrics = json.loads((folder / "metrics.json").read_text())
    with (folder / "tasks.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    for row in rows:
        del row["train_seconds"]
    names = sorted(path.name for path in folder.iterdir())
    return {"files": names, "rows": rows} | {k: v for k, v in metrics.items() if k not in OWN}


def test_a_killed_run_of_tasks_ends_as_an_undisturbed_one(tmp_path):
    write_eurosat(tmp_path)
    words = ["dataset=eurosat", f"data_root={tmp_path}", "method=so", "tasks=6", "shots=2"]
    words += ["episodes.ways=[2,4]", "schedule.max_steps=15", "schedule.batch_size=8"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.killed_runs", tmp_path / "results", "4", *words],
        capture_output=True,
        text=True,
        timeout=1800,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    assert sum(json.loads(done.stdout).values()) == 4
    whole, *others = [_result(path) for path in sorted((tmp_path / "results").glob("[0-9]*"))]
    assert others
    assert "finished_tasks.json" not in whole["files"]
    for other in others:
        assert [key for key in whole | other if whole.get(key) != other.get(key)] == []
