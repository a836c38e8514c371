"""A sweep's record and its closing summary, from states to words and exit codes."""

import csv
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from so_clip.errors import Terminated
from so_clip.evaluate import evaluator as evaluate
from so_clip.results.job_files import Job, read_plan
from so_clip.sweep.callback import LOST, exit_code_of, summary
from so_clip.system.locks import lock_folder, unlock
from tests.helpers.command import call

QUICK = ("experiment=demo", "schedule.max_steps=4", "evaluation.workers=0", "threads=1")


def _sweep_dir(results_dir: Path) -> Path:
    (folder,) = (results_dir / ".sweeps").iterdir()
    return folder


def _jobs(results_dir: Path) -> list[dict[str, Any]]:
    files = sorted((_sweep_dir(results_dir) / "jobs").glob("*.json"))
    return [json.loads(file.read_text()) for file in files]


@pytest.mark.parametrize(
    ("states", "codes", "problem", "expected"),
    [
        (["done", "skipped", "busy"], [], None, 0),
        (["done", "failed"], [1], None, 1),
        (["done", "failed", "failed"], [2, 2], None, 2),
        (["failed", "failed"], [2, 1], None, 1),
        (["done", "lost"], [], None, 1),
        (["failed", "lost"], [2], None, 1),
        (["done", "not started"], [], RuntimeError("the launcher broke"), 1),
        (["done", "interrupted", "not started"], [], KeyboardInterrupt(), 130),
        (["done", "interrupted", "not started"], [], Terminated(), 143),
    ],
)
def test_the_exit_code_follows_from_the_failures(states, codes, problem, expected):
    given = iter(codes)
    jobs = {
        number: Job([], state, exit_code=next(given) if state == "failed" else None)
        for number, state in enumerate(states)
        if state != "not started"
    }
    assert exit_code_of(dict(enumerate(states)), jobs, problem) == expected


def test_the_summary_has_counts_and_a_command_for_each_failed_job():
    planned = [["seed=1"], ["seed=2", "template='a {} of'"], ["seed=3"], ["seed=4"], ["seed=5"]]
    jobs = {
        0: Job(planned[0], "done"),
        1: Job(planned[1], "failed", message="the loss became nan", exit_code=1),
        2: Job(planned[2], "running"),
        3: Job(planned[3], "skipped"),
    }
    states = {0: "done", 1: "failed", 2: "lost", 3: "skipped", 4: "not started"}
    assert summary(planned, jobs, states).splitlines() == [
        "sweep of 5 runs: 1 done, 1 skipped (finished before), 1 failed, 1 lost (its process "
        "ended), 1 not started",
        "failed: the loss became nan",
        """  python -m so_clip seed=2 "template='a {} of'\"""",
        f"lost: {LOST}",
        "  python -m so_clip seed=3",
    ]


@pytest.mark.slow
def test_jobs_are_split_as_hydra_splits_them_with_the_lists_of_an_experiment(tmp_path):
    """Lists of the command line replace those of the experiment."""
    arguments = ("experiment=paper_table", "method=so,clip_lora", "shots=4,16", "seed=3")
    done = call("-m", *arguments, "dataset=dtd", f"data_root={tmp_path}", f"results_dir={tmp_path}")
    assert done.code == 2  # there are no images
    assert "sweep of 4 runs: 4 failed" in done.out
    lines = [line for line in done.out.splitlines() if line.startswith("  python")]
    assert len(lines) == 5
    for method in ("so", "clip_lora"):
        for shots in (4, 16):
            wanted = {f"method={method}", f"shots={shots}", "seed=3", "dataset=dtd"}
            (line,) = [line for line in lines if wanted <= {*line.split()}]
            assert "experiment=paper_table" in line
            assert "-m" not in line.split()[3:]
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
def test_the_record_of_a_sweep_has_its_plan_and_the_end_of_each_job(tmp_path):
    common = ("method=zero_shot", "evaluation.workers=0", f"results_dir={tmp_path}")
    done = call("-m", *common, "shots=0,1", "template=plain,'a {}, blurred'")
    assert done.code == 2
    folder = _sweep_dir(tmp_path)
    values = json.loads((folder / "sweep.json").read_text())
    assert values["command"][1:] == ["-m", *common, "shots=0,1", "template=plain,'a {}, blurred'"]
    plan = read_plan(folder)
    assert plan is not None
    assert values["jobs"] == plan.jobs
    assert [job[-2:] for job in values["jobs"]] == [
        [f"shots={shots}", template]
        for shots in (0, 1)
        for template in ("template=plain", "template='a {}, blurred'")
    ]
    jobs = [json.loads((folder / "jobs" / f"{number}.json").read_text()) for number in range(4)]
    assert [job["overrides"] for job in jobs] == values["jobs"]
    assert [job["state"] for job in jobs] == ["failed", "failed", "done", "done"]
    assert [job["exit_code"] for job in jobs] == [2, 2, None, None]
    for job in jobs[2:]:
        metrics = json.loads((Path(job["run_dir"]) / "metrics.json").read_text())
        assert job["accuracy_percent"] == metrics["accuracy_percent"]
    assert "sweep of 4 runs: 2 done, 2 failed" in done.out
    # The command repeats exactly this job.
    assert "shots=0 \"template='a {}, blurred'\"\n" in done.out


def test_a_repeated_sweep_runs_only_what_is_missing(tmp_path):
    sweep = ("-m", "method=zero_shot", "evaluation.workers=0", f"results_dir={tmp_path}")
    sweep += ("template=plain,'a {}, blurred'",)
    first = call(*sweep)
    assert (first.code, first.messages) == (0, [])
    assert first.out.rstrip().endswith("sweep of 2 runs: 2 done")
    names = ("[1 of 2] template=plain", "[2 of 2] template='a {}, blurred'")
    numbers, lines = re.compile(r"\d+(\.\d+)?"), iter(first.out.splitlines())
    ends = ("; 1 s left for the sweep", "")
    for name, job, end in zip(names, _jobs(tmp_path), ends, strict=True):
        for line in (f"{name} ...", f"{name}: {job['run_dir']}: 1 %, 1 MiB, 1 s{end}"):
            assert numbers.sub("1", next(lines)) == numbers.sub("1", line)
    assert first.err == ""
    assert first.out.count("Test accuracy in percent") == 1
    assert f"\n  python -m so_clip report {tmp_path}\n" in first.out
    folders = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/metrics.json")}
    again = call(*sweep)
    assert again.code == 0
    assert again.out.rstrip().endswith("sweep of 2 runs: 2 skipped (finished before)")
    assert again.out.startswith("2 of 2 runs finished before: skipped. force=true repeats them.\n")
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/metrics.json")}
    (folders[0] / "metrics.json").write_text('{"accuracy_percent": 6')  # torn
    (folders[1] / "metrics.json").unlink()
    repaired = call(*sweep)
    assert repaired.code == 0
    assert repaired.out.rstrip().endswith("sweep of 2 runs: 2 done")
    assert f"{folders[0] / 'metrics.json'} cannot be read" in repaired.err


@pytest.mark.slow
def test_a_failed_run_leaves_its_error_and_the_sweep_goes_on(tmp_path):
    arguments = (*QUICK, f"results_dir={tmp_path}")
    done = call("-m", *arguments, "optimizer.lr=1e30,2e-3")
    assert done.code == 1, done.err
    assert "sweep of 2 runs: 1 done, 1 failed\n" in done.out
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


@pytest.mark.slow
def test_a_run_of_another_process_is_left_to_it(tmp_path):
    arguments = ("method=zero_shot", "evaluation.workers=0", f"results_dir={tmp_path}")
    first = call(*arguments)
    (folder,) = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    (folder / "metrics.json").unlink()
    lock = lock_folder(folder)
    assert lock is not None
    alone, sweep = call(*arguments), call("-m", *arguments)
    unlock(lock)
    assert (first.code, alone.code, sweep.code) == (0, 2, 0)
    assert alone.messages == [
        f"so_clip: {folder}: another process is running this "
        "configuration. Wait for it, or choose another folder with results_dir=FOLDER."
    ]
    assert "sweep of 1 run: 1 busy (another process is running this configuration)" in sweep.out
    assert "runs only what is missing:\n  python -m so_clip -m" in sweep.out


@pytest.mark.slow
def test_a_finished_single_run_is_skipped_and_shows_its_table(tmp_path):
    arguments = ("method=zero_shot", "evaluation.workers=0", f"results_dir={tmp_path}")
    first, again, forced = (call(*arguments, *more) for more in ((), (), ("force=true",)))
    assert (first.code, again.code, forced.code) == (0, 0, 0)
    assert "finished before: skipped. force=true repeats it." in again.out
    assert again.out.endswith(first.out)
    assert "finished before" not in forced.out + first.out


@pytest.mark.slow
def test_the_printed_commands_have_the_users_configuration_folder(tmp_path):
    folder = tmp_path / "my conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\nshots: 0\n")
    given = ("experiment=mine", f"results_dir={tmp_path / 'runs'}")
    done = call("-m", "-cd", folder.parent, *given, "seed=1,2")
    assert done.code == 2
    lines = [shlex.split(line)[3:] for line in done.out.splitlines() if "  python -m" in line]
    flag = f"--config-dir={folder.parent}"
    assert lines[:2] == [[flag, *given, f"seed={seed}"] for seed in (1, 2)]
    again = call(*lines[0])
    assert (again.code, again.messages) == (2, done.messages[:1])


@pytest.mark.parametrize(
    "values",
    [
        "range(1,1000000000000)",
        "range(0,1,1e-12)",
        f"{','.join(map(str, range(400)))} shots=range(1,400)",
    ],
)
def test_a_sweep_with_too_many_jobs_is_refused_before_they_are_listed(tmp_path, values):
    done = call("-m", *f"seed={values}".split(), f"results_dir={tmp_path}")
    assert done.code == 2
    (message,) = done.messages
    assert "A sweep can have 100000 runs" in message
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
@pytest.mark.parametrize("bug", [ValueError("no such leaf"), AssertionError()])
def test_a_bug_is_reported_as_a_bug(tmp_path, monkeypatch, bug):
    def broken(*arguments: object) -> None:
        raise bug

    monkeypatch.setattr(evaluate, "classify", broken)
    common = ("method=zero_shot", "evaluation.workers=0", f"results_dir={tmp_path}")
    for multirun in ((), ("-m",)):
        done = call(*multirun, *common)
        assert done.code == 1
        first, second = done.messages
        assert first == f"so_clip: {type(bug).__name__}: {bug}"
        assert "may be a bug" in second
        (file,) = tmp_path.glob("*/error.json")
        error = json.loads(file.read_text())
        assert (error["kind"], error["exit_code"]) == (type(bug).__name__, 1)
        assert "in broken" in error["traceback"]
        file.unlink()


def test_a_sweep_that_cannot_be_composed_leaves_nothing(tmp_path):
    done = call("-m", "method=zero_shot,nonsense", f"results_dir={tmp_path}")
    assert (done.code, done.out) == (2, "")
    assert len(done.messages) == 1
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
def test_the_launcher_for_gpus_works_without_a_gpu(tmp_path):
    common = ("method=zero_shot", "evaluation.workers=0", f"results_dir={tmp_path}")
    done = call("-m", "hydra/launcher=gpus", *common, "seed=1,2")
    assert done.code == 0, done.err
    # Zero-shot CLIP has no seed, so the second run is the same as the first.
    assert done.out.rstrip().endswith("sweep of 2 runs: 1 done, 1 skipped (finished before)")
    multirun = OmegaConf.load(_sweep_dir(tmp_path) / "multirun.yaml")
    assert multirun.hydra.launcher.batch_size == "1"
