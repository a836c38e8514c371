"""Sweeps in real processes: parallel, simultaneous, killed, interrupted, on a full disk."""

import json
import os
import re
import shlex
import signal
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command import Outcome, ended, spawn, started, until
from tests.helpers.small_disk import on_small_disk

pytestmark = pytest.mark.slow

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
    """Return the accuracies of an undisturbed serial sweep over two seeds."""
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
def test_a_parallel_sweep_equals_the_serial_one(launcher, undisturbed, tmp_path):
    arguments = [item for item in QUICK if not item.startswith(("threads", "evaluation"))]
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


def test_two_simultaneous_sweeps_run_each_job_once(undisturbed, tmp_path):
    arguments = ("-m", *QUICK, "seed=1,2", f"results_dir={tmp_path}")
    with started(*arguments) as one, started(*arguments) as other:
        outcomes = [ended(one), ended(other)]
    assert [item.code for item in outcomes] == [0, 0], outcomes
    states = Counter[str]()
    for file in (tmp_path / ".sweeps").glob("*/jobs/*.json"):
        states[json.loads(file.read_text())["state"]] += 1
    assert states["done"] == 2
    assert states["done"] + states["skipped"] + states["busy"] == 4
    assert _accuracies(tmp_path) == undisturbed
    assert not [path for path in tmp_path.rglob(".*") if path.suffix not in (".sweeps", "")]


def test_a_killed_sweep_continues_to_the_undisturbed_result(undisturbed, tmp_path):
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


def test_a_killed_worker_is_lost(tmp_path):
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


def test_on_a_full_disk_runs_fail_with_a_message_and_no_file_is_torn(tmp_path):
    sweep = f"-m method=zero_shot template=plain,\\'x{{}}\\' results_dir={tmp_path}"
    files = f"cd {tmp_path} && for f in $(find . -name '*.json'); do \"$0\" -m json.tool $f; done"
    done = on_small_disk(
        tmp_path, "48k", f'"$0" -m so_clip {sweep}; code=$?; {files} >&2; exit $code'
    )
    assert done.code == 2, done.err
    assert re.search("^sweep of 2 runs: (1 done, 1|2) failed$", done.out, re.MULTILINE)
    assert re.search("failed: cannot write .*No space left on device", done.out)
    assert "Expecting" not in done.err  # the error message of json.tool
