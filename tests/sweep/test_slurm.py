"""A sweep on Slurm: the batch script, and a job that is preempted and requeued."""

import json
import os
import re
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.helpers.command import call, ended, spawn, started, until
from tests.helpers.fake_slurm import install

RUN = ("experiment=demo", "schedule.stop_loss=0", "schedule.max_steps=12", "threads=1")


def _written(file: Path) -> str:
    return file.read_text() if file.exists() else ""


@pytest.mark.slow
def test_a_preempted_job_is_requeued_and_has_the_same_result(tmp_path):
    undisturbed = spawn(*RUN, f"results_dir={tmp_path / 'alone'}")
    assert undisturbed.code == 0, undisturbed.err
    slurm, runs = tmp_path / "slurm", tmp_path / "runs"
    launcher = ("hydra/launcher=slurm", "hydra.launcher.partition=gpu")
    sweep = ("-m", *launcher, *RUN, "seed=1,-1", "checkpoint_seconds=0.05", f"results_dir={runs}")
    with started(*sweep, **install(slurm)) as process:
        script = until(lambda: _written(slurm / "script.sh"), process)
        (progress,) = until(lambda: [*runs.glob("*/progress.json")], process)
        until(lambda: [*runs.glob("*/checkpoint.pt")], process)
        # Slurm sends this signal before it takes a node away.
        os.kill(json.loads(progress.read_text())["pid"], signal.SIGUSR2)
        done = ended(process)
    assert done.code == 2, (done, _written(slurm / "log"))
    assert "sweep of 2 runs: 1 done, 1 failed" in done.out
    assert "failed: seed=-1: must be 0 or more" in done.out
    assert _written(slurm / "requeued") == "requeue 7_0\n"
    (alone,), (metrics,) = (
        [json.loads(file.read_text()) for file in folder.glob("*/metrics.json")]
        for folder in (tmp_path / "alone", runs)
    )
    for key in ("run_fingerprint", "accuracy_percent", "final_loss", "steps"):
        assert metrics[key] == alone[key], key
    for line in (
        *("--job-name=so_clip", "--partition=gpu", "--array=0-1%2", "--requeue"),
        *("--open-mode=append", "--signal=USR2@120", "--time=240", "--nodes=1"),
        *("--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=8", "--mem=48GB"),
    ):
        assert f"#SBATCH {line}\n" in script
    assert re.search(r"^srun .* -u -m submitit\.core\._submit ", script, re.MULTILINE)


def test_a_machine_without_slurm_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = call("-m", "hydra/launcher=slurm", "seed=1,2", f"results_dir={tmp_path / 'runs'}")
    assert done.code == 1
    assert "slurm" in done.err.lower()
    assert "Traceback" not in done.err
    assert [*tmp_path.iterdir()] == []


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed here")
def test_a_launcher_that_is_not_installed_names_its_extra(tmp_path):
    done = call("-m", "hydra/launcher=ray", f"results_dir={tmp_path}")
    assert done.code == 2
    assert done.messages == [
        "so_clip: hydra/launcher=ray needs a package that is not installed: "
        "pip install 'so-clip[ray]'."
    ]
    assert [*tmp_path.iterdir()] == []
