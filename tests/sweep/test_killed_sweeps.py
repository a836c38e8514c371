"""Sweeps that are killed at random moments and continued by the same command: the same table."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.command import call, environment

pytestmark = pytest.mark.slow

# SO_CLIP_KILLS=20 is a longer test. -s prints the number of finished runs at each kill.
KILLS = int(os.environ.get("SO_CLIP_KILLS", "2"))
# Metrics that differ between a run and its repetition.
OWN = ("train_seconds", "evaluate_seconds")
SWEEP = (
    *("experiment=demo", "method=so,clip_lora", f"seed={'1' if KILLS < 20 else '1,2'}"),
    "schedule.max_steps=16",
    *("checkpoint_seconds=0.01", "schedule.stop_loss=0"),
)


def _tables(results_dir: Path, out: Path) -> dict[str, str]:
    """Return all that `so_clip table` prints and `so_clip report` writes of a sweep's runs."""
    for file in results_dir.glob("*/metrics.json"):
        metrics = json.loads(file.read_text())
        file.write_text(json.dumps(metrics | dict.fromkeys(OWN, 0.0)))
    printed = call("table", results_dir, "-o", out / "table")
    written = call("report", results_dir, "-o", out / "report", "--tables-only")
    assert (printed.code, written.code) == (0, 0), printed.err + written.err
    files = {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}
    assert files
    texts = {name: path.read_text() for name, path in files.items()} | {"printed": printed.out}
    return {
        name: text.replace(str(out), "").replace(str(results_dir), "")
        for name, text in texts.items()
    }


def test_a_killed_sweep_has_the_table_of_an_undisturbed_one(tmp_path):
    results = tmp_path / "results"
    command = [sys.executable, "-m", "tests.helpers.killed_sweeps", results, str(KILLS), *SWEEP]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, env=environment())
    assert done.returncode == 0, done.stderr
    finished: dict[str, int] = json.loads(done.stdout)
    print(f"kills by the number of finished runs: {finished}")
    assert sum(finished.values()) == KILLS
    whole, *others = [
        _tables(folder, tmp_path / "tables" / folder.name)
        for folder in sorted(results.glob("[0-9]*"), key=lambda folder: int(folder.name))
    ]
    assert others
    assert "SO" in whole["printed"]
    for other in others:
        assert [name for name in whole | other if whole.get(name) != other.get(name)] == []
    left = {path.name for path in results.rglob("*") if path.is_file()}
    assert not {"checkpoint.pt", "progress.json", "error.json"} & left
