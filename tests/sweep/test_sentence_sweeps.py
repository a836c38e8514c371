"""Sweeps of runs on sentences: resumed after a kill, skipped, and repeated from their records."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from tests.helpers.command import call, ended, shell_words, started, until
from tests.helpers.sentence_runs import places

# Metrics that do not depend on the clock.
EXACT = ("accuracy_percent", "final_loss", "steps", "changed_parameters", "fingerprint")
GRID = ("optimizer.density_ratio=0.01,0.05,0.2", "optimizer.T=1,2,3")


def _measured(results_dir: Path) -> dict[str, tuple[object, ...]]:
    """Return what each run measured, by the name of its folder."""
    found = {}
    for file in results_dir.glob("[!.]*/metrics.json"):
        metrics = json.loads(file.read_text())
        tables = [file.with_name(name).read_text() for name in ("history.csv", "predictions.csv")]
        losses = [line.split(",")[:2] for line in tables[0].splitlines()]
        found[file.parent.name] = (*(metrics[key] for key in EXACT), losses, tables[1])
    return found


@pytest.mark.slow
def test_a_killed_grid_of_nine_runs_is_resumed_to_the_numbers_of_an_undisturbed_one(tmp_path):
    common = [*places(tmp_path), "schedule.max_steps=60", "checkpoint_seconds=0.01", "threads=1"]
    common = [word for word in common if not word.startswith("results_dir=")]
    workers = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    undisturbed = call("rte", "-m", *common, *GRID, *workers, f"results_dir={tmp_path / 'whole'}")
    assert undisturbed.code == 0, undisturbed.err
    killed = tmp_path / "killed"
    sweep = ("rte", "-m", *common, *GRID, f"results_dir={killed}")
    with started(*sweep) as process:
        until(lambda: len([*killed.glob("*/metrics.json")]) >= 3, process)
        until(lambda: [*killed.glob("*/checkpoint.pt")], process)
        os.killpg(process.pid, signal.SIGKILL)
        assert ended(process).code == -signal.SIGKILL
    done_before = len([*killed.glob("*/metrics.json")])
    assert 3 <= done_before < 9
    # status prints the command that continues the sweep.
    (line,) = {line for line in call("status", killed).out.splitlines() if line[:3] == "  p"}
    again = call(*shell_words(line)[2:])
    assert again.code == 0, again.err
    counts = f"{9 - done_before} done, {done_before} skipped (finished before)"
    assert f"sweep of 9 runs: {counts}" in again.out
    assert len(_measured(killed)) == 9
    assert _measured(killed) == _measured(tmp_path / "whole")
    assert not [*killed.glob("*/checkpoint.pt")]
    table = call("table", killed)
    assert (table.code, table.out.count("optimizer.T=3")) == (0, 6)  # accuracy and memory


@pytest.mark.slow
def test_a_sweep_skips_finished_runs_and_records_the_first_word(tmp_path):
    words = ["rte", "-m", *places(tmp_path), "seed=1,2"]
    first = call(*words)
    assert first.code == 0, first.err
    assert "sweep of 2 runs: 2 done" in first.out
    again = call(*words)
    assert "2 of 2 runs finished before: skipped." in again.out
    assert "sweep of 2 runs: 2 skipped (finished before)" in again.out
    runs = tmp_path / "runs"
    folder = next(runs.glob("rte-*-seed2-*"))
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["overrides"][:2] == ["sentences", "dataset=rte"]
    plan = json.loads(next(runs.glob(".sweeps/*/sweep.json")).read_text())
    assert plan["command"][1:4] == ["sentences", "-m", "dataset=rte"]
    states = call("status", runs)
    assert "2 runs: 2 done" in states.out
    assert re.search(r"python -m so_clip sentences -m dataset=rte", states.out)
    # A record repeats itself, with the first word and without it.
    for command in (["--from", folder], ["rte", "--from", folder]):
        repeated = call(*command)
        assert repeated.code == 0, repeated.err
        assert "finished before: skipped" in repeated.out
        assert str(folder) in repeated.out
    assert len([*runs.glob("rte-*")]) == 2
