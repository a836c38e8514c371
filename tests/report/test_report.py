"""The command `report` on real runs and on made runs."""

import json
import os
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

from so_clip.system.code_hash import code_sha256
from tests.helpers.command import Outcome, call, environment
from tests.helpers.made_datasets import write_class_folders
from tests.helpers.report_runs import (
    write_grid,
    write_predictions,
    write_provenance,
    write_run,
)


def _report(*arguments: object) -> Outcome:
    return call("report", *arguments)


@pytest.fixture(scope="module")
def real_runs(tmp_path_factory) -> Path:
    """Two steps of SO with two seeds, and zero-shot CLIP, on digits."""
    root = tmp_path_factory.mktemp("runs")
    for method, seed in (("so", 1), ("so", 2), ("zero_shot", 1)):
        steps = ["schedule.max_steps=2"] if method == "so" else []
        options = ("experiment=demo", f"method={method}", f"seed={seed}", f"results_dir={root}")
        done = call(*options, *steps)
        assert done.code == 0, done.err
    return root


def test_real_runs_make_a_report(real_runs, tmp_path):
    done = _report(real_runs, "-o", tmp_path)
    assert (done.code, done.err) == (0, "")
    names = {path.name for path in (tmp_path / "tables").iterdir()}
    for name in ("accuracy", "calibration", "memory", "seconds", "significance"):
        assert {f"{name}.{ending}" for ending in ("csv", "md", "tex", "html")} <= names
    assert "all.tex" in names
    assert (tmp_path / "index.html").is_file()
    cells = pd.read_csv(tmp_path / "tables" / "accuracy.csv")
    metrics = [json.loads(path.read_text()) for path in real_runs.glob("*-so-*/metrics.json")]
    mean = sum(values["accuracy_percent"] for values in metrics) / 2
    (row,) = cells[cells["method"] == "so"].to_dict("records")
    assert (row["dataset"], row["runs"]) == ("digits", 2)
    assert row["mean"] == pytest.approx(mean)
    assert set(cells["method"]) == {"so", "zero_shot"}
    pairs = pd.read_csv(tmp_path / "tables" / "significance.csv")
    assert set(pairs["test"]) == {"seeds", "images"}
    assert f"3 runs; page: {tmp_path / 'index.html'}" in done.out


def test_tables_only_writes_no_page_and_no_significance(real_runs, tmp_path):
    done = _report(real_runs, "-o", tmp_path, "--tables-only")
    assert done.code == 0
    assert done.out.splitlines()[-1] == f"3 runs; tables in {tmp_path}"
    assert not (tmp_path / "index.html").exists()
    assert not (tmp_path / "tables" / "significance.csv").exists()
    assert (tmp_path / "tables" / "accuracy.tex").is_file()


@pytest.mark.slow
def test_a_report_that_fails_leaves_the_older_page(tmp_path):
    write_grid(tmp_path / "runs")
    page = tmp_path / "out" / "index.html"
    command = (tmp_path / "runs", "-o", tmp_path / "out")
    assert _report(*command).code == 0
    before = page.read_bytes()
    # A folder in the place of a file makes writing fail.
    pairs = tmp_path / "out" / "tables" / "significance.csv"
    pairs.unlink()
    pairs.mkdir()
    assert _report(*command).code == 2
    assert page.read_bytes() == before


@pytest.mark.slow
def test_a_terminal_shows_every_stage(tmp_path):
    write_grid(tmp_path / "runs")
    fcntl, termios = map(pytest.importorskip, ("fcntl", "termios"))
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    arguments = ("-m", "so_clip", "report", tmp_path / "runs", "-o", tmp_path / "out")
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stderr=theirs,
        stdout=subprocess.DEVNULL,
        env=environment(),
    )
    os.close(theirs)
    seen = b""
    with (
        suppress(OSError),
        os.fdopen(ours, "rb", buffering=0) as terminal,
    ):  # the end of a terminal is an error
        while piece := terminal.read(4096):
            seen += piece
    assert process.wait() == 0
    for stage in (b"runs:", b"significance:", b"plots:", b"page:"):
        assert stage in seen


def test_the_default_folder_is_beside_the_runs_and_can_be_written_again(real_runs):
    for _ in range(2):
        done = _report(real_runs, "--tables-only")
        assert (done.code, done.err) == (0, "")
    assert (real_runs / "report" / "tables" / "accuracy.md").is_file()


def test_missing_runs_are_printed_and_noted_below_the_table(tmp_path):
    folders = write_grid(tmp_path / "runs")
    (folders["so", "dtd", 2] / "metrics.json").unlink()
    done = _report(tmp_path / "runs", "-o", tmp_path / "out", "--tables-only")
    assert done.code == 0
    line = "Missing at 4 shots: SO: DTD (seed 2)."
    assert f"  {line}\n" in done.out
    for ending in ("md", "tex", "html"):
        assert line in (tmp_path / "out" / "tables" / f"accuracy.{ending}").read_text()
    (message,) = done.messages
    assert message.startswith(f"so_clip: left out: {folders['so', 'dtd', 2]}: unfinished")


def test_a_torn_run_is_one_line_on_stderr(tmp_path):
    folders = write_grid(tmp_path / "runs", methods=("so",))
    for folder in folders.values():
        write_predictions(folder, [True, False, True])
        write_provenance(folder)
    torn = folders["so", "dtd", 2]
    (torn / "metrics.json").write_text('{"dataset": "dt')
    done = _report(tmp_path / "runs", "-o", tmp_path / "out")
    assert done.code == 0
    assert len(done.messages) == 1
    assert str(torn) in done.messages[0]
    cells = pd.read_csv(tmp_path / "out" / "tables" / "accuracy.csv").set_index("dataset")["runs"]
    assert (cells["dtd"], cells["eurosat"]) == (2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--details", "nope"), "--details nope: there is no finished run of that name"),
        (("--details", "a", "--tables-only"), "--details a: --tables-only writes no page"),
    ],
)
def test_details_that_cannot_be_shown_are_refused_before_anything_is_written(
    tmp_path, options, message
):
    write_run(tmp_path / "runs", "a")
    done = _report(tmp_path / "runs", "-o", tmp_path / "out", *options)
    assert (done.code, done.out) == (2, "")
    assert message in done.messages[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["", "nowhere", "file"])
def test_a_folder_without_runs_is_bad_input(tmp_path, place):
    (tmp_path / "file").write_text("")
    done = _report(tmp_path / place)
    assert (done.code, done.out) == (2, "")
    assert str(tmp_path / place) in done.messages[0]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_written_is_bad_input(tmp_path):
    write_run(tmp_path, "a")
    done = _report(tmp_path, "-o", "/proc/report")
    assert done.code == 2
    assert "/proc/report" in done.err
    assert "another folder with -o FOLDER" in done.err
    assert "Traceback" not in done.err


@pytest.mark.slow
def test_flops_are_forecast_on_request(real_runs, tmp_path):
    done = _report(real_runs, "-o", tmp_path, "--tables-only", "--flops")
    assert (done.code, done.err) == (0, "")
    cells = pd.read_csv(tmp_path / "tables" / "flops.csv").set_index("method")["mean"]
    assert 1e-3 < cells["so"] < 0.1  # two steps of the tiny CLIP
    assert cells["zero_shot"] == 0
    text = (tmp_path / "tables" / "accuracy.md").read_text()
    assert "training (TFLOP)" in text
    assert "FLOPs are forecast, not measured" in text


@pytest.mark.slow
def test_flops_need_the_settings_and_images_of_the_run(tmp_path):
    write_class_folders(tmp_path / "pets", ("ant", "bee", "cat"), images=8)
    data = ("dataset=folder", f"data_root={tmp_path / 'pets'}", "shots=2", "schedule.max_steps=1")
    done = call("experiment=demo", *data, f"results_dir={tmp_path / 'runs'}")
    assert done.code == 0, done.err
    (file,) = (tmp_path / "runs").glob("*/metrics.json")
    metrics = json.loads(file.read_text())
    command = (tmp_path / "runs", "-o", tmp_path / "out", "--tables-only", "--flops")
    assert _report(*command).messages == []
    write_class_folders(tmp_path / "pets", ("dog",), images=8)
    (message,) = _report(*command).messages
    assert "the images in" in message
    assert "have changed since the run" in message
    for garbage in ([], 3, "x", {"folder": 1}):
        metrics["settings"]["user_data"] = garbage
        file.write_text(json.dumps(metrics))
        (message,) = _report(*command).messages
        assert "no FLOPs: its settings come from another version" in message


def test_changed_code_has_another_hash(tmp_path):
    for name, text in (("old", "a = 1"), ("same", "a = 1"), ("new", "a = 2")):
        (tmp_path / name / "optim").mkdir(parents=True)
        (tmp_path / name / "optim" / "so.py").write_text(text)
    old, same, new = (
        code_sha256("optim", package=tmp_path / name) for name in ("old", "same", "new")
    )
    assert old == same != new


def test_runs_with_unknown_settings_have_no_flops(tmp_path):
    write_run(tmp_path / "runs", "a", steps=3)
    done = _report(tmp_path / "runs", "-o", tmp_path / "out", "--tables-only", "--flops")
    assert done.code == 0
    (message,) = done.messages
    assert "no FLOPs: its settings come from another version" in message
    assert not (tmp_path / "out" / "tables" / "flops.csv").exists()
