"""The whole command on runs of the program itself and on many made by hand."""

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
    """Two steps of SO with two seeds and zero-shot CLIP on digits, by the command line."""
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
    mean = sum(each["accuracy_percent"] for each in metrics) / 2
    (row,) = cells[cells["method"] == "so"].to_dict("records")
    assert (row["dataset"], row["runs"]) == ("digits", 2)
    assert row["mean"] == pytest.approx(mean)
    assert set(cells["method"]) == {"so", "zero_shot"}
    pairs = pd.read_csv(tmp_path / "tables" / "significance.csv")
    assert set(pairs["test"]) == {"seeds", "images"}
    assert f"3 runs; {tmp_path / 'index.html'} in {tmp_path}" in done.out


def test_tables_alone_are_made_on_request(real_runs, tmp_path):
    done = _report(real_runs, "-o", tmp_path, "--tables-only")
    assert done.code == 0
    assert done.out.splitlines()[-1] == f"3 runs; tables in {tmp_path}"
    assert not (tmp_path / "index.html").exists()
    assert not (tmp_path / "tables" / "significance.csv").exists()
    assert (tmp_path / "tables" / "accuracy.tex").is_file()


def test_a_page_is_of_this_report_or_is_said_not_to_be(tmp_path):
    write_grid(tmp_path / "runs")
    page = tmp_path / "out" / "index.html"
    command = (tmp_path / "runs", "-o", tmp_path / "out")
    # Something that cannot be written over stands where a file of the report should be.
    pairs = tmp_path / "out" / "tables" / "significance.csv"
    pairs.mkdir(parents=True)
    done = _report(*command)
    assert done.code == 2
    assert done.messages[0] == f"so_clip: cut short: {page} was not written."
    assert not page.exists()
    pairs.rmdir()
    assert _report(*command).code == 0
    before = page.read_bytes()
    pairs.unlink()
    pairs.mkdir()
    done = _report(*command)
    assert done.messages[0] == f"so_clip: cut short: {page} is that of an earlier report."
    assert page.read_bytes() == before
    done = _report(*command, "--tables-only")
    assert done.out.splitlines()[-1] == f"{page} is that of an earlier report."


def test_on_a_terminal_each_stage_is_shown(tmp_path):
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
    with suppress(OSError), os.fdopen(ours, "rb", buffering=0) as terminal:  # its end is an error
        while piece := terminal.read(4096):
            seen += piece
    assert process.wait() == 0
    for stage in (b"runs:", b"significance:", b"plots:", b"page:"):
        assert stage in seen


def test_the_report_goes_beside_the_runs_and_is_made_again(real_runs):
    for _ in range(2):
        done = _report(real_runs, "--tables-only")
        assert (done.code, done.err) == (0, "")
    assert (real_runs / "report" / "tables" / "accuracy.md").is_file()


def test_what_is_missing_is_printed_with_its_command(tmp_path):
    folders = write_grid(tmp_path / "runs")
    (folders["so", "dtd", 2] / "metrics.json").unlink()
    done = _report(tmp_path / "runs", "-o", tmp_path / "out", "--tables-only")
    assert done.code == 0
    options = f"method=so backbone=tiny dataset=dtd shots=4 seed=2 results_dir={tmp_path / 'runs'}"
    command = f"python -m so_clip {options}"
    assert "Missing at 4 shots: SO: DTD (seed 2)." in done.out
    assert f"\n  {command}\n" in done.out
    assert f"```sh\n{command}\n```" in (tmp_path / "out" / "tables" / "accuracy.md").read_text()
    (message,) = done.messages
    assert message.startswith(f"so_clip: left out: {folders['so', 'dtd', 2]}: unfinished")


def test_a_torn_run_is_one_line_and_harms_nothing(tmp_path):
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


@pytest.mark.parametrize("place", ["", "nowhere", "file"])
def test_nothing_to_show_is_bad_input(tmp_path, place):
    (tmp_path / "file").write_text("")
    done = _report(tmp_path / place)
    assert (done.code, done.out) == (2, "")
    assert str(tmp_path / place) in done.messages[0]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_place_that_cannot_be_written_is_bad_input(tmp_path):
    write_run(tmp_path, "a")
    done = _report(tmp_path, "-o", "/proc/report")
    assert done.code == 2
    assert "/proc/report" in done.err
    assert "another folder with -o FOLDER" in done.err
    assert "Traceback" not in done.err


def test_flops_are_forecast_on_request_and_kept(real_runs, tmp_path):
    done = _report(real_runs, "-o", tmp_path, "--tables-only", "--flops")
    assert (done.code, done.err) == (0, "")
    kept = json.loads((real_runs / ".flops.json").read_text())
    assert len(kept) == 2  # both seeds are one kind, zero-shot CLIP is another
    assert min(kept.values()) == 0
    flops = max(kept.values())
    assert 1e9 < flops < 1e11  # two steps of the tiny CLIP
    cells = pd.read_csv(tmp_path / "tables" / "flops.csv")
    assert cells.set_index("method")["mean"]["so"] == pytest.approx(flops / 1e12)
    text = (tmp_path / "tables" / "accuracy.md").read_text()
    assert "training (TFLOP)" in text
    assert "FLOPs are forecast, not measured" in text


def test_flops_of_earlier_runs_are_forecast_and_those_of_other_images_are_not(tmp_path):
    write_class_folders(tmp_path / "pets", ("ant", "bee", "cat"), images=8)
    own = ("dataset=folder", f"data_root={tmp_path / 'pets'}", "shots=2", "schedule.max_steps=1")
    done = call("experiment=demo", *own, f"results_dir={tmp_path / 'runs'}")
    assert done.code == 0, done.err
    (file,) = (tmp_path / "runs").glob("*/metrics.json")
    metrics = json.loads(file.read_text())
    del metrics["settings"]["evaluation"]["decode_cache_gib"]  # which came later
    file.write_text(json.dumps(metrics))
    command = (tmp_path / "runs", "-o", tmp_path / "out", "--tables-only", "--flops")
    assert (_report(*command).messages, (tmp_path / "runs" / ".flops.json").exists()) == ([], True)
    (tmp_path / "runs" / ".flops.json").unlink()
    write_class_folders(tmp_path / "pets", ("dog",), images=8)
    (message,) = _report(*command).messages
    assert "the images in" in message
    assert "are not those of the run any more" in message
    for garbage in ([], 3, "x", {"folder": 1}):
        metrics["settings"]["own"] = garbage
        file.write_text(json.dumps(metrics))
        (message,) = _report(*command).messages
        assert "no FLOPs: its settings are of another version" in message


def test_other_code_forecasts_anew(tmp_path):
    for name, text in (("old", "a = 1"), ("same", "a = 1"), ("new", "a = 2")):
        (tmp_path / name / "optim").mkdir(parents=True)
        (tmp_path / name / "optim" / "so.py").write_text(text)
    old, same, new = (
        code_sha256("optim", package=tmp_path / name) for name in ("old", "same", "new")
    )
    assert old == same != new


def test_runs_of_another_version_have_no_flops_and_say_so(tmp_path):
    write_run(tmp_path / "runs", "a", steps=3)
    done = _report(tmp_path / "runs", "-o", tmp_path / "out", "--tables-only", "--flops")
    assert done.code == 0
    (message,) = done.messages
    assert "no FLOPs: its settings are of another version" in message
    # A failure is not kept: another version of the code may know better.
    assert not (tmp_path / "runs" / ".flops.json").exists()
    assert not (tmp_path / "out" / "tables" / "flops.csv").exists()
