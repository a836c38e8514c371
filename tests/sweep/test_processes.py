"""Sweeps in real processes: in parallel, at the same time, killed, interrupted, on a full disk."""

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from so_clip.system.locks import lock_folder, unlock
from tests.helpers.command import Outcome, ended, environment, spawn, started, until

QUICK = ("experiment=demo", "schedule.max_steps=4", "evaluation.workers=0", "threads=1")
LONG = ("experiment=demo", "schedule.stop_loss=0", "schedule.max_steps=100000")


def _jobs(results_dir: Path) -> dict[int, dict[str, Any]]:
    files = (results_dir / ".sweeps").glob("*/jobs/*.json")
    return {int(file.stem): json.loads(file.read_text()) for file in files}


def _accuracies(results_dir: Path) -> dict[str, float]:
    """Return the accuracy of each finished run, by its folder's name."""
    files = results_dir.glob("*/metrics.json")
    return {file.parent.name: json.loads(file.read_text())["accuracy_percent"] for file in files}


def _summary(done: Outcome) -> str:
    (line,) = re.findall("^sweep of .*$", done.out, re.MULTILINE)
    return line


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> dict[str, float]:
    """What a serial sweep over two seeds that nobody disturbs comes to."""
    results_dir = tmp_path_factory.mktemp("undisturbed")
    done = spawn("-m", *QUICK, "seed=1,2", f"results_dir={results_dir}")
    assert (done.code, _summary(done)) == (0, "sweep of 2 runs: 2 done"), done.err
    return _accuracies(results_dir)


@pytest.mark.parametrize(
    "launcher",
    [
        ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
        ("hydra/launcher=submitit_local",),
        pytest.param(
            ("hydra/launcher=ray",),
            marks=pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray"),
        ),
    ],
    ids=["joblib", "submitit", "ray"],
)
def test_a_parallel_sweep_is_the_serial_one(launcher, undisturbed, tmp_path):
    arguments = [each for each in QUICK if not each.startswith(("threads", "evaluation"))]
    done = spawn("-m", *launcher, *arguments, "seed=1,-2,2", f"results_dir={tmp_path}")
    assert done.code == 2, done.err
    assert _summary(done) == "sweep of 3 runs: 2 done, 1 failed"
    assert "failed: seed=-2: must be 0 or more" in done.out
    assert _accuracies(tmp_path) == undisturbed
    jobs = _jobs(tmp_path)
    assert [jobs[number]["state"] for number in range(3)] == ["done", "failed", "done"]
    pids = {job["pid"] for job in jobs.values()}
    assert len(pids) > 1
    cores = len(os.sched_getaffinity(0))
    for file in tmp_path.glob("*/metrics.json"):
        settings = json.loads(file.read_text())["settings"]
        at_once = {"joblib": 2, "submitit_local": 3, "ray": min(cores, 3)}
        share = max(1, cores // at_once[launcher[0].partition("=")[2]])
        assert settings["threads"] == share
        assert settings["evaluation"]["workers"] == settings["threads"]


def test_two_sweeps_at_once_do_each_run_once(undisturbed, tmp_path):
    arguments = ("-m", *QUICK, "seed=1,2", f"results_dir={tmp_path}")
    with started(*arguments) as one, started(*arguments) as other:
        outcomes = [ended(one), ended(other)]
    assert [each.code for each in outcomes] == [0, 0], outcomes
    states = Counter[str]()
    for file in (tmp_path / ".sweeps").glob("*/jobs/*.json"):
        states[json.loads(file.read_text())["state"]] += 1
    assert states["done"] == 2
    assert states["done"] + states["skipped"] + states["busy"] == 4
    assert _accuracies(tmp_path) == undisturbed
    assert not [path for path in tmp_path.rglob(".*") if path.suffix not in (".sweeps", "")]


def test_a_killed_sweep_once_more_is_the_undisturbed_one(undisturbed, tmp_path):
    arguments = ("-m", *QUICK, "seed=1,2", f"results_dir={tmp_path}")
    with started(*arguments) as process:
        until(lambda: len(_jobs(tmp_path)) == 2, process)
        os.killpg(process.pid, signal.SIGKILL)
        assert ended(process).code == -signal.SIGKILL
    assert len(_accuracies(tmp_path)) == 1
    again = spawn(*arguments)
    assert again.code == 0, again.err
    assert _summary(again) == "sweep of 2 runs: 1 done, 1 skipped (finished before)"
    assert _accuracies(tmp_path) == undisturbed


def test_a_worker_that_is_killed_is_lost_and_said_so(undisturbed, tmp_path):
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.launcher.batch_size=1")
    arguments = ("-m", *launcher, *LONG, "seed=1,2", f"results_dir={tmp_path}")
    with started(*arguments) as process:
        until(lambda: len([*tmp_path.glob("*/config.yaml")]) == 2, process)
        os.kill(_jobs(tmp_path)[0]["pid"], signal.SIGKILL)
        done = ended(process)
    assert done.code == 1
    assert _summary(done) == "sweep of 2 runs: 2 lost (its process ended)"
    assert re.findall("^  python -m so_clip .* seed=([12]) ", done.out, re.MULTILINE) == ["1", "2"]


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_ends_a_sweep_with_its_summary(tmp_path, number, code, message):
    arguments = ("-m", *LONG, "seed=1,2", f"results_dir={tmp_path}")
    with started(*arguments) as process:
        until(lambda: [*tmp_path.glob("*/config.yaml")], process)
        process.send_signal(number)
        done = ended(process)
    assert done.code == code
    assert done.err.splitlines() == [f"so_clip: {message}"]
    assert _summary(done) == "sweep of 2 runs: 1 interrupted, 1 not started"
    assert done.out.endswith(
        f"what is missing:\n  {shlex.join(['python', '-m', 'so_clip', *arguments])}\n"
    )
    assert not [*tmp_path.glob("*/error.json")]
    assert not [*tmp_path.rglob(".lock")]


def test_a_failed_run_leaves_its_error_and_the_sweep_goes_on(tmp_path):
    arguments = (*QUICK, f"results_dir={tmp_path}")
    done = spawn("-m", *arguments, "optimizer.lr=1e30,2e-3")
    assert done.code == 1, done.err
    assert _summary(done) == "sweep of 2 runs: 1 done, 1 failed"
    (file,) = tmp_path.glob("*/error.json")
    error = json.loads(file.read_text())
    assert error["kind"] == "TrainingDiverged"
    assert f"failed: {error['message']}" in done.out
    assert error["exit_code"] == 1
    assert "optimizer.lr=1e+30" in error["overrides"]
    with (file.parent / "history.csv").open(newline="", encoding="utf-8") as history:
        assert not float([*csv.DictReader(history)][-1]["loss"]) < 1e9
    (line,) = [line for line in done.out.splitlines() if line.startswith("  python -m so_clip exp")]
    assert "optimizer.lr=1e+30" in line
    assert _jobs(tmp_path)[0]["run_dir"] == str(file.parent)


def test_a_run_that_another_process_does_is_left_to_it(tmp_path):
    arguments = ("method=zero_shot", "evaluation.workers=0", f"results_dir={tmp_path}")
    first = spawn(*arguments)
    (folder,) = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    (folder / "metrics.json").unlink()
    lock = lock_folder(folder)
    assert lock is not None
    alone, sweep = spawn(*arguments), spawn("-m", *arguments)
    unlock(lock)
    assert (first.code, alone.code, sweep.code) == (0, 2, 0)
    assert alone.messages == [
        f"so_clip: {folder}: another process is running this "
        "configuration. Wait for it, or choose another folder with results_dir=FOLDER."
    ]
    assert _summary(sweep) == (
        "sweep of 1 run: 1 busy (another process is running this configuration)"
    )


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare to mount a small disk")
def test_on_a_full_disk_runs_fail_with_a_word_and_no_file_is_torn(tmp_path):
    mount = f"mount -t tmpfs -o size=48k tmpfs {tmp_path}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this machine does not let a process mount a small disk of its own")
    sweep = f"-m method=zero_shot template=plain,\\'x{{}}\\' results_dir={tmp_path}"
    program = f'"$0" -m so_clip {sweep}'
    files = f"cd {tmp_path} && for f in $(find . -name '*.json'); do \"$0\" -m json.tool $f; done"
    script = f"{mount} && {{ {program}; code=$?; {files} >&2; exit $code; }}"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, sys.executable],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 2, done.stderr
    assert re.search("^sweep of 2 runs: (1 done, 1|2) failed$", done.stdout, re.MULTILINE)
    assert re.search("failed: cannot write .*No space left on device", done.stdout)
    assert "Expecting" not in done.stderr  # of json.tool
