"""States of runs from real folders, real locks, real processes and torn files."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from so_clip.status.watcher import look
from so_clip.version import RESULTS_VERSION
from tests.helpers.command import python
from tests.helpers.sentence_folders import write_sentence_run
from tests.helpers.status_runs import (
    ERROR,
    METRICS,
    progress,
    running_process,
    states,
    status,
    write_run,
    write_sweep,
)


@pytest.mark.parametrize(
    ("files", "state"),
    [
        ({"metrics": METRICS}, "done"),
        ({"metrics": METRICS, "progress": {}}, "done"),
        ({"error": ERROR}, "failed"),
        ({"error": ERROR, "progress": {}}, "failed"),
        ({"progress": {}}, "interrupted"),
        ({}, "interrupted"),
        ({"progress": {"host": "elsewhere"}}, "running"),  # its locks are not seen here
        ({"progress": {"seconds_ago": 700, "host": "elsewhere"}}, "interrupted"),
    ],
)
def test_the_files_decide_the_state(files: dict[str, Any], state: str, tmp_path: Path) -> None:
    if "progress" in files:  # made now, because the file has the time
        files = files | {"progress": progress(**files["progress"])}
    write_run(tmp_path, "a", **files)
    assert states(look(tmp_path)) == {"a": state}


def test_the_table_shows_each_state(tmp_path: Path) -> None:
    write_run(tmp_path, "a-done", metrics=METRICS)
    write_run(tmp_path, "b-failed", error=ERROR)
    write_run(tmp_path, "c-stopped", progress=progress())
    write_run(tmp_path / "deeper" / "still", "d-elsewhere", progress=progress(host="elsewhere"))
    outcome = status(tmp_path)
    assert outcome.code == 1
    assert outcome.messages == ["so_clip: 1 run failed."]
    lines = [line.split() for line in outcome.out.splitlines()]
    first, *rest = lines
    assert first == f"{tmp_path}: 4 runs: 1 done, 1 running, 1 failed, 1 interrupted".split()
    assert ["done", "a-done", "200", "0.1600", "81.11", "%"] in rest
    assert ["interrupted", "c-stopped", "120/2000", "0.2500"] in rest
    (failed,) = [line for line in rest if line[:1] == ["failed"]]
    assert " ".join(failed) == (
        "failed b-failed TrainingDiverged: the loss became nan at step 50. Lower optimizer.lr."
    )
    (running,) = [line for line in rest if line[:1] == ["running"]]
    assert running[1:4] == ["deeper/still/d-elsewhere", "120/2000", "0.2500"]
    assert running[4:] in (["1", "h", "07", "min"], ["1", "h", "06", "min"])


def test_skipped_images_are_a_remark(tmp_path: Path) -> None:
    for name, train in (("a", 3), ("b", 0)):
        counts = {"skipped_train_images": train, "skipped_test_images": 0}
        write_run(tmp_path, name, metrics=METRICS | counts)
    remarks = {run.name: run.remark for run in look(tmp_path).runs}
    assert remarks == {"a": "corrupt images skipped: 3 train", "b": ""}


@pytest.mark.parametrize(
    ("version", "remark"),
    [
        (RESULTS_VERSION, ""),
        (
            RESULTS_VERSION - 1,
            f"older results version ({RESULTS_VERSION - 1}): a sweep runs it again",
        ),
        ("torn", ""),
    ],
)
def test_a_finished_run_of_an_older_version_says_so(
    tmp_path: Path, version: object, remark: str
) -> None:
    settings = {"adapter": {"_target_": "so_clip.methods.coop.CoOp"}}
    provenance = {"results_version": version}
    write_run(tmp_path, "a", metrics=METRICS | {"settings": settings}, provenance=provenance)
    (run,) = look(tmp_path).runs
    assert (run.state, run.remark) == ("done", remark)


def test_a_run_is_running_until_its_process_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    with running_process(folder) as process:
        (run,) = look(tmp_path).runs
        assert (run.state, run.step, run.max_steps) == ("running", 0, 200)
        process.kill()
        process.wait()
        (run,) = look(tmp_path).runs
        assert (run.state, run.seconds_left) == ("interrupted", None)
    with running_process(folder) as process:
        assert states(look(tmp_path)) == {"a": "running"}
        process.communicate()
        (run,) = look(tmp_path).runs
        assert (run.state, run.accuracy_percent) == ("done", 75.0)


@pytest.mark.parametrize("files", [{"metrics": METRICS}, {"error": ERROR}])
def test_a_repeated_run_is_running_as_soon_as_it_has_the_lock(
    files: dict[str, Any], tmp_path: Path
) -> None:
    folder = write_run(tmp_path, "a", **files)
    (before,) = look(tmp_path).runs
    for stage, remark in (("claimed", "starting"), ("started", "")):
        with running_process(folder, stage):
            (run,) = look(tmp_path).runs
            assert (run.state, run.remark) == ("running", remark)
        (run,) = look(tmp_path).runs
        assert run.state == (before.state if stage == "claimed" else "interrupted")


def test_status_does_not_keep_a_run_from_starting(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "a", progress=progress())
    code = """
import sys, threading, time
from pathlib import Path
from so_clip.results.run_folder import RunFolder
from so_clip.system.locks import is_locked

stop = threading.Event()
def ask():
    while not stop.is_set():
        is_locked(Path(sys.argv[1]))
        time.sleep(0.0002)

thread = threading.Thread(target=ask)
thread.start()
try:
    for _ in range(300):
        with RunFolder(Path(sys.argv[1])).claimed():
            pass
finally:
    stop.set()
    thread.join()
"""
    python(code, folder)


def test_a_run_without_recent_progress_says_so(tmp_path: Path) -> None:
    with running_process(tmp_path / "a"):
        path = tmp_path / "a" / "progress.json"
        path.write_text(json.dumps(progress(seconds_ago=1800)))
        (run,) = look(tmp_path).runs
    assert (run.state, run.remark) == ("running", "no progress for 30 min")
    assert run.seconds_left == pytest.approx(4000 - 1800, abs=5)


BROKEN = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"step": "x", "loss": [], "seconds_left": {}, "updated_at": 3, "message": null, "stage": []}',
    b'{"step": 1e999, "loss": NaN, "seconds_left": 1' + b"0" * 400 + b', "updated_at": "now"}',
    b'{"step": true, "accuracy_percent": "high", "steps": -0.5, "overrides": [1], "kind": {}}',
    b'{"kind": "\\u001b[31m", "message": "\\ud800\\u0000", "overrides": ["a\\nb=\\u001b[0m"]}',
    None,  # a folder of that name
]


@pytest.mark.parametrize("content", BROKEN, ids=lambda content: str(content)[:20])
@pytest.mark.parametrize(
    ("name", "state"), [("metrics", "failed"), ("error", "failed"), ("progress", "interrupted")]
)
def test_status_tolerates_torn_files(
    name: str, state: str, content: bytes | None, tmp_path: Path
) -> None:
    broken = write_run(tmp_path, "broken") / f"{name}.json"
    broken.mkdir() if content is None else broken.write_bytes(content)
    write_run(tmp_path, "whole", metrics=METRICS)
    outcome = status("--all", tmp_path)
    assert outcome.code == (1 if state == "failed" else 0)
    assert states(look(tmp_path)) == {"broken": state, "whole": "done"}
    assert "\x1b" not in outcome.out


def test_other_folders_are_not_runs(tmp_path: Path) -> None:
    write_run(tmp_path / ".features", "hidden", metrics=METRICS)
    write_run(tmp_path / "deep" / "deeper", "a", metrics=METRICS)
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "accuracy.csv").write_text("x\n")
    (tmp_path / "circle").symlink_to(tmp_path)
    assert [run.name for run in look(tmp_path).runs] == ["deep/deeper/a"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may enter any folder")
def test_an_unreadable_folder_is_named(tmp_path: Path) -> None:
    closed = write_run(tmp_path, "closed", metrics=METRICS)
    write_run(tmp_path, "open", metrics=METRICS)
    closed.chmod(0)
    try:
        outcome = status(tmp_path)
    finally:
        closed.chmod(0o700)
    assert outcome.code == 0
    assert f"left out: {closed} cannot be read: Permission denied." in outcome.out


_LOOK = """
import sys, time
from pathlib import Path
from so_clip.status.watcher import look

began = time.process_time()
view = look(Path(sys.argv[1]))
print(len(view.runs), time.process_time() - began, "torch" in sys.modules)
"""


@pytest.mark.slow
def test_two_thousand_runs_are_read_in_seconds_without_torch(tmp_path: Path) -> None:
    for number in range(2000):
        write_run(tmp_path, f"r{number}", metrics=METRICS | {"seed": number})
    runs, seconds, has_torch = python(_LOOK, tmp_path).split()
    assert (runs, has_torch) == ("2000", "False")
    assert float(seconds) < 3


def test_runs_on_sentences_are_done_failed_and_missing_like_others(tmp_path: Path) -> None:
    write_sentence_run(tmp_path, method="so", overrides=["--config-name=sentences", "method=so"])
    write_run(tmp_path, "b-failed", error=ERROR)
    jobs = [["--config-name=sentences", f"method={name}"] for name in ("so", "lora")]
    write_sweep(tmp_path, "2026", ["rte", "-m", "method=so,lora"], jobs)
    outcome = status(tmp_path)
    assert f"{tmp_path}: 3 runs: 1 done, 1 failed, 1 missing" in outcome.out
    assert "54.15 %" in outcome.out
    assert "python -m so_clip rte -m method=so,lora" in outcome.out
    assert "image" not in outcome.out
