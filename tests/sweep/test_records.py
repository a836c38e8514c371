"""Sweeps with missing, torn or left-over files, and with unusual results folders."""

import json
import os
from pathlib import Path

import pytest

from so_clip.errors import FAILED
from so_clip.results.job_files import SWEEP_FILE
from so_clip.results.run_folder import RunFolder
from so_clip.sweep.callback import Sweep, _close
from so_clip.system.locks import lock_folder, unlock
from tests.helpers.command import call
from tests.helpers.status_runs import METRICS

JOBS = [["seed=1"], ["seed=2"]]


def test_a_sweep_whose_jobs_recorded_nothing_has_failed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["so_clip", "-m", "force=true", "seed=1,2"])
    (tmp_path / SWEEP_FILE).write_text(json.dumps({"jobs": JOBS}))
    assert _close(Sweep(tmp_path, JOBS), None) == FAILED
    out = capsys.readouterr().out
    assert "sweep of 2 runs: 2 not started" in out
    assert out.endswith("what is missing:\n  python -m so_clip -m seed=1,2\n")
    assert (tmp_path / SWEEP_FILE).exists()


def test_a_job_without_a_recorded_end_is_lost_after_the_launcher_returned(tmp_path, capsys):
    file = tmp_path / "jobs" / "0.json"
    file.parent.mkdir()
    # The process of a pool may still exist; the parent of this test stands for it.
    job = {
        "overrides": JOBS[0],
        "state": "running",
        "pid": os.getppid(),
        "host": os.uname().nodename,
    }
    rest = dict.fromkeys(("run_dir", "message", "exit_code", "accuracy_percent"))
    file.write_text(json.dumps(job | rest))
    assert _close(Sweep(tmp_path, JOBS[:1]), None) == FAILED
    assert "1 lost" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong",
    [{"accuracy_percent": float("nan")}, {"accuracy_percent": None}, {"peak_memory_mib": "1"}],
)
def test_a_finished_run_without_its_scores_counts_as_unfinished(tmp_path, wrong, capsys):
    metrics = METRICS | {"run_fingerprint": "f"}
    file = tmp_path / "metrics.json"
    file.write_text(json.dumps(metrics))
    (tmp_path / "config.yaml").touch()
    assert RunFolder(tmp_path).finished("f") == metrics
    file.write_text(json.dumps(metrics | wrong))
    assert RunFolder(tmp_path).finished("f") is None
    assert "counts as unfinished" in capsys.readouterr().err
    file.write_text("[" * 100_000)
    assert RunFolder(tmp_path).finished("f") is None


@pytest.mark.slow
def test_a_sweep_removes_the_leftovers_of_killed_sweeps_only(tmp_path):
    sweep = ("-m", "method=zero_shot", "evaluation.workers=0", f"results_dir={tmp_path}")
    dead, alive = (tmp_path / ".sweeps" / name for name in ("dead", "alive"))
    for folder in (dead, alive, tmp_path / ".features"):
        (folder / "jobs").mkdir(parents=True)
        (folder / "sweep.json").write_text("{}")
        for name in (".lock", "jobs/.0.json.x.partial", ".sweep.json.x.partial"):
            (folder / name).touch()
            os.utime(folder / name, (0, 0))
    (alive / "jobs" / ".1.json.x.partial").touch()
    lock = lock_folder(alive)
    assert call(*sweep).code == 0
    assert [path.name for path in dead.rglob("*")] == ["jobs", "sweep.json"]
    left = {path.name for path in alive.rglob("*")}
    assert left == {".lock", "jobs", "sweep.json", ".1.json.x.partial"}
    assert not [*(tmp_path / ".features").glob("*.partial")]
    unlock(lock)


@pytest.mark.slow
def test_a_link_to_a_results_folder_is_the_same_folder(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    first, again = (
        call("-m", "method=zero_shot", "evaluation.workers=0", f"results_dir={tmp_path / place}")
        for place in ("runs", "disk")
    )
    assert (first.code, again.code) == (0, 0)
    assert first.out.rstrip().endswith("sweep of 1 run: 1 done")
    assert again.out.rstrip().endswith("sweep of 1 run: 1 skipped (finished before)")
    done = call("status", tmp_path / "runs")
    assert "1 done" in done.out
    assert (tmp_path / "runs").is_symlink()


@pytest.mark.slow
def test_a_home_folder_is_expanded_for_the_sweep_and_its_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    left = tmp_path / "home" / "kept" / ".x.npz.y.partial"
    left.parent.mkdir(parents=True)
    left.touch()
    os.utime(left, (0, 0))
    places = ('results_dir="~/runs"', 'evaluation.cache_dir="~/kept"')
    done = call("-m", "method=zero_shot", "evaluation.workers=0", *places)
    assert done.code == 0, done.err
    assert not left.exists()
    assert list(tmp_path.glob("home/runs/.sweeps/*/sweep.json"))
    assert not Path("~").exists()
