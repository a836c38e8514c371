"""The jobs of sweeps, their runs, and the command that continues a sweep."""

import json
import shlex
import time
from collections import Counter
from pathlib import Path

import pytest

from so_clip.results.job_files import Job
from so_clip.status.watcher import look
from tests.helpers.status_runs import (
    ERROR,
    METRICS,
    progress,
    running_process,
    status,
    write_job,
    write_run,
    write_sweep,
)

JOBS = [[f"method={method}", f"seed={seed}"] for method in ("so", "adamw") for seed in (1, 2, 3)]
COMMAND = ["-m", "method=so,adamw", "seed=1,2,3"]


def commands(out: str) -> list[list[str]]:
    """Return the arguments of the printed commands, in their order."""
    lines = [shlex.split(line) for line in out.splitlines() if line.startswith("  python ")]
    return [line[3:] for line in lines]


def test_jobs_without_a_run_are_missing_and_the_sweeps_command_continues(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, "2026-01-01", [*COMMAND, "force=true"], JOBS)
    write_job(sweep, 0, "done", run_dir=str(write_run(tmp_path, "a", metrics=METRICS)))
    view = look(tmp_path)
    assert view.counts == {"done": 1, "missing": 5}
    assert not view.is_running
    outcome = status(tmp_path)
    assert outcome.code == 0
    assert outcome.out.splitlines()[0].endswith(": 6 runs: 1 done, 5 missing")
    assert commands(outcome.out) == [COMMAND]  # force would repeat the finished run
    counts = map(str, (6, 1, 5))  # states without a run have no column
    assert ["2026-01-01", *counts, "python", "-m", "so_clip", *COMMAND] in [
        line.split() for line in outcome.out.splitlines()
    ]


def test_a_complete_sweep_needs_no_command(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, "2026-01-01", COMMAND, JOBS[:1])
    write_job(sweep, 0, "done", run_dir=str(write_run(tmp_path, "a", metrics=METRICS)))
    assert commands(status(tmp_path).out) == []


def test_a_job_that_failed_before_it_had_a_folder_shows_its_reason(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, "2026-01-01", COMMAND, JOBS[:1])
    write_job(sweep, 0, "failed", message="there is no such file.", exit_code=2)
    outcome = status(tmp_path)
    assert outcome.code == 1
    assert ["failed", *JOBS[0], "there", "is", "no", "such", "file."] in [
        line.split() for line in outcome.out.splitlines()
    ]
    assert commands(outcome.out) == [COMMAND]


def test_an_interrupted_run_is_matched_by_its_overrides(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, "2026-01-01", COMMAND, JOBS[:1])
    write_run(tmp_path, "a", progress=progress(overrides=JOBS[0]))
    write_job(sweep, 0, "running", pid=2**31 - 1)
    outcome = status(tmp_path)
    assert outcome.code == 0
    assert look(tmp_path).counts == {"interrupted": 1}
    assert commands(outcome.out) == [COMMAND]


def test_a_repeated_sweep_counts_once(tmp_path: Path) -> None:
    first = write_sweep(tmp_path, "2026-01-01", COMMAND, JOBS)
    second = write_sweep(
        tmp_path, "2026-01-02", COMMAND, [[*job[::-1], "force=true"] for job in JOBS]
    )
    for number in range(3):
        run_dir = str(write_run(tmp_path, f"a{number}", metrics=METRICS))
        write_job(first, number, "done", run_dir=run_dir)
    write_job(first, 3, "failed", message="out of memory")
    write_job(second, 3, "done", run_dir=str(write_run(tmp_path, "a3", metrics=METRICS)))
    write_job(second, 4, "failed", run_dir=str(write_run(tmp_path, "a4", error=ERROR)))
    view = look(tmp_path)
    assert view.counts == {"done": 4, "failed": 1, "missing": 1}
    for _, runs in view.sweeps:
        assert Counter(run.state for run in runs) == view.counts
    assert commands(status(tmp_path).out) == [COMMAND]


def test_a_single_run_fills_a_gap(tmp_path: Path) -> None:
    write_sweep(tmp_path, "2026-01-01", COMMAND, JOBS)
    write_run(tmp_path, "a", metrics=METRICS, provenance={"overrides": JOBS[1]})
    write_run(tmp_path, "b", metrics=METRICS, provenance={"overrides": []})
    write_run(tmp_path, "c", metrics=METRICS, provenance={"overrides": 3})
    view = look(tmp_path)
    assert view.counts == {"done": 3, "missing": 5}
    ((_, runs),) = view.sweeps
    assert [run.state for run in runs] == ["missing", "done", *["missing"] * 4]


def test_moved_results_keep_their_jobs(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "old", "2026-01-01", COMMAND, JOBS[:1])
    write_job(sweep, 0, "done", run_dir=str(write_run(tmp_path / "old", "a", metrics=METRICS)))
    (tmp_path / "old").rename(tmp_path / "new")
    assert look(tmp_path / "new").counts == {"done": 1}


def test_a_running_sweep_has_running_and_waiting_jobs(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, "2026-01-01", COMMAND, JOBS)
    with running_process(tmp_path / "a", "started", *JOBS[0]) as process:
        write_job(sweep, 0, "running", pid=process.pid)
        write_job(sweep, 1, "running")
        write_job(sweep, 2, "running", pid=process.pid, host="elsewhere")
        view = look(tmp_path)
        assert view.counts == {"running": 3, "waiting": 3}
        assert view.is_running
        assert commands(status(tmp_path).out) == []
    assert look(tmp_path).counts["interrupted"] == 1


def test_a_job_that_repeats_a_run_shows_that(tmp_path: Path) -> None:
    first = write_sweep(tmp_path, "2026-01-01", COMMAND, JOBS[:3])
    for number, files in enumerate(({"error": ERROR}, {"error": ERROR}, {"metrics": METRICS})):
        run_dir = str(write_run(tmp_path, f"a{number}", **files))
        write_job(first, number, "failed" if number < 2 else "done", run_dir=run_dir)
    assert look(tmp_path).counts == {"failed": 2, "done": 1}
    second = write_sweep(tmp_path, "2026-01-02", COMMAND, JOBS[:3])
    write_job(second, 0, "running")
    assert look(tmp_path).counts == {"running": 1, "waiting": 1, "done": 1}


def test_a_job_whose_process_ended_is_missing(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, "2026-01-01", COMMAND, JOBS[:1])
    with running_process(tmp_path / "elsewhere" / "a") as process:
        write_job(sweep, 0, "running", pid=process.pid)
        assert look(tmp_path).counts["missing"] == 0
        process.kill()
        process.wait()
        view = look(tmp_path)
    assert view.counts["missing"] == 1
    assert not view.is_running


def test_a_sweep_without_a_plan_has_the_jobs_that_started(tmp_path: Path) -> None:
    command = ["-m", "hydra/sweeper=other"]
    sweep = write_sweep(tmp_path, "2026-01-01", command, [])
    run_dir = str(write_run(tmp_path, "a", metrics=METRICS))
    write_job(sweep, 0, "done", overrides=["seed=1"], run_dir=run_dir)
    write_job(sweep, 1, "failed", overrides=["seed=2"], message="no.")
    assert look(tmp_path).counts == {"done": 1, "failed": 1}
    assert commands(status(tmp_path).out) == [command]


def test_status_tolerates_torn_files_of_sweeps(tmp_path: Path) -> None:
    write_run(tmp_path, "a", metrics=METRICS)
    torn = write_sweep(tmp_path, "2026-01-01", COMMAND, JOBS)
    (torn / "sweep.json").write_text('{"jobs": [["a"], 3]}')
    whole = write_sweep(tmp_path, "2026-01-02", COMMAND, JOBS[:2])
    (whole / "jobs" / "0.json").write_bytes(b"\xff")
    (whole / "jobs" / "1.json").write_text('{"state": [], "run_dir": {}, "message": 3}')
    (whole / "jobs" / "77.json").write_text("{}")
    (whole / "jobs" / "x.json").write_text("{}")
    (tmp_path / ".sweeps" / "2026-01-03").mkdir()  # Hydra makes the folder before sweep.json
    outcome = status(tmp_path)
    assert outcome.code == 0
    assert f"left out: {torn / 'sweep.json'} cannot be used." in outcome.out
    assert look(tmp_path).counts == {"done": 1, "missing": 2}


@pytest.mark.slow
def test_twenty_thousand_jobs_are_matched_in_seconds(tmp_path: Path) -> None:
    jobs = [["method=so", f"seed={number}"] for number in range(20_000)]
    sweep = write_sweep(tmp_path, "2026-01-01", ["-m", "method=so", "seed=range(20000)"], jobs)
    for number in range(0, 20_000, 20):
        run_dir = str(write_run(tmp_path, f"a{number}", metrics=METRICS))
        job = Job(jobs[number], "done", run_dir)
        (sweep / "jobs" / f"{number}.json").write_text(json.dumps(vars(job)))
    began = time.process_time()
    view = look(tmp_path)
    assert time.process_time() - began < 5
    assert view.counts == {"done": 1000, "missing": 19_000}
