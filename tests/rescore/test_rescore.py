"""`python -m so_clip rescore`: its tables and files, and one clear message for bad input."""

import csv
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.docs_site.blocks import blocks
from so_clip.results.logit_scores import ensemble_accuracy, logit_scores
from so_clip.results.logits_file import LOGITS_FILE, read_logits
from tests.helpers.command import ROOT, Outcome, call, python
from tests.helpers.kept_runs import CLASSES, DRAWN, write_kept, write_kept_run
from tests.helpers.made_datasets import write_dtd, write_eurosat
from tests.helpers.sentence_folders import write_sentence_run


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as text:
        return [*csv.DictReader(text)]


def _done(*arguments: object) -> Outcome:
    done = call("rescore", *arguments)
    assert done.code == 0, done.err
    return done


def test_the_tables_and_files_have_the_scores_of_the_kept_logits(tmp_path):
    runs, out = tmp_path / "runs", tmp_path / "out"
    folder = write_kept_run(runs)
    write_kept(folder, "so1", 5, test_set="dtd", classes=4)
    zero_shot = write_kept_run(runs, method="zero_shot", models=("zero_shot_",))
    done = _done(runs, "-o", out)
    assert done.messages == []
    rows = _rows(out / "scores.csv")
    assert json.loads((out / "rescore.json").read_text())["left_out"] == []
    assert len(json.loads((out / "rescore.json").read_text())["scores"]) == len(rows) == 9
    kept = {
        "pets": read_logits(folder / LOGITS_FILE),
        "dtd": read_logits(folder / "logits_dtd.safetensors"),
    }
    for row in rows[:8]:
        logits = kept[row["test_set"]]
        prefix = "" if row["model"] == "adapted" else "zero_shot_"
        temperature = float(row["temperature"]) if row["temperature"] else None
        assert temperature in (None, logits.temperatures[prefix])
        expected = logit_scores(logits.models[prefix], logits.label_N, temperature)
        for name, value in expected.items():
            assert row[name] == ("" if value is None else str(value)), name
        assert row["calibrated_on"] == (str(DRAWN) if temperature else "")
    assert (rows[8]["run"], rows[8]["model"]) == (zero_shot.name, "zero-shot")
    assert f"({DRAWN})" in done.out
    curve = [row for row in _rows(out / "curves.csv") if row["test_set"] == "pets"]
    assert [row["weight"] for row in curve] == [str(index / 10) for index in range(11)]
    models = kept["pets"].models
    for row in curve:
        share = float(row["weight"])
        accuracy = ensemble_accuracy(models["zero_shot_"], models[""], kept["pets"].label_N, share)
        assert float(row["accuracy_percent"]) == accuracy
    assert (out / "curves.svg").read_text().count("<svg") == 1


def test_runs_that_differ_only_in_the_seed_vote(tmp_path):
    for seed in (1, 2, 3):
        write_kept_run(tmp_path, seed)
    other = write_kept_run(tmp_path, 4)
    write_kept(other, "so4", 4, images="other")
    done = _done(tmp_path)
    (message,) = done.messages
    assert message == (
        f"so_clip: left out: {other.parent / 'pets-tiny-so-4shot-seed1'}: no vote with its other "
        "seeds, because their test images of pets differ."
    )
    shutil.rmtree(other)
    done = _done(tmp_path)
    assert done.messages == []
    lines = [line.split("|") for line in done.cells.splitlines()]
    single = [float(line[4]) for line in lines if line[2:3] == [" adapted "]]
    (row,) = (line for line in lines if line[2:3] == [" 1 2 3 "])
    mean, majority, mean_probability = map(float, row[3:6])
    assert mean == pytest.approx(np.mean(single), abs=0.01)
    assert majority > mean
    assert mean_probability > mean


@pytest.mark.parametrize("width", [72, 100, 200])
def test_a_terminal_shows_every_number_whole(width, tmp_path, monkeypatch):
    run = write_kept_run(tmp_path)
    write_kept(run, "so1", 5, test_set="dtd")
    for name, value in (("TTY_COMPATIBLE", "1"), ("NO_COLOR", "1"), ("COLUMNS", str(width))):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TERM", "xterm")
    out = re.sub("\x1b\\[[0-9;]*m", "", _done(run).out)
    monkeypatch.setenv("TTY_COMPATIBLE", "0")
    piped = _done(run).out
    assert "|" not in out
    assert max(map(len, out.splitlines())) <= width
    assert Counter(re.findall(r"\d+\.\d+", out)) >= Counter(re.findall(r"\d+\.\d{2,}", piped))
    assert run.name[-12:] in out


def test_validation_images_are_named(tmp_path):
    run = write_kept_run(tmp_path)
    _metrics(run, tested_on="val")
    assert "| pets (val) " in _done(run).out


def test_foreign_text_is_escaped(tmp_path):
    folder = write_kept_run(tmp_path, method="so")
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics |= {"dataset": "=HYPERLINK(1)", "method_title": "\x1b[31m[x](http://y)"}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    folder.rename(folder.with_name("[a](b)\x1b[31m"))
    done = _done(tmp_path, "-o", tmp_path / "out")
    assert "\x1b" not in done.out
    assert "[a](" not in done.out
    row = _rows(tmp_path / "out" / "scores.csv")[0]
    assert row["dataset"] == "'=HYPERLINK(1)"
    assert "\x1b" not in row["method_title"]


def _metrics(folder: Path, **values: Any) -> None:
    file = folder / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


# (damage of a run, a part of the message)
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no logits": (
        lambda run: (run / LOGITS_FILE).unlink(),
        f"this run has no {LOGITS_FILE}. Repeat it: python -m so_clip --from",
    ),
    "truncated logits": (
        lambda run: (run / LOGITS_FILE).write_bytes((run / LOGITS_FILE).read_bytes()[:-9]),
        f"{LOGITS_FILE} cannot be read: ",
    ),
    "a folder": (
        lambda run: [(run / LOGITS_FILE).unlink(), (run / LOGITS_FILE).mkdir()],
        f"{LOGITS_FILE} cannot be read: ",
    ),
    "other classes": (
        lambda run: (
            write_kept(run, "so1", 1, classes=CLASSES - 1)
            or (run / "per_class.csv").write_text("label,name,images\n" + "0,a,9\n" * CLASSES)
        ),
        f"has logits of {CLASSES - 1} classes, and ",
    ),
    "other labels": (
        lambda run: (run / "per_class.csv").write_text("label,name,images\n" + "0,a,9\n" * CLASSES),
        "its labels are not those of",
    ),
    "no per_class.csv": (lambda run: (run / "per_class.csv").unlink(), "per_class.csv cannot be"),
    "another run": (
        lambda run: _metrics(run, run_fingerprint="x"),
        "these are the logits of another run",
    ),
    "unfinished": (lambda run: (run / "metrics.json").rename(run / "error.json"), "unfinished"),
    "damaged metrics": (lambda run: (run / "metrics.json").write_text("{"), "metrics.json cannot"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_run_that_cannot_be_used_has_one_message(name, tmp_path):
    good, run = write_kept_run(tmp_path / "runs", 2), write_kept_run(tmp_path / "runs", 1)
    damage, text = BAD[name]
    damage(run)
    alone = call("rescore", run, "-o", tmp_path / "out")
    assert (alone.code, len(alone.messages)) == (2, 1), alone.err
    assert text in alone.messages[0]
    assert str(run) in alone.messages[0]
    assert not (tmp_path / "out").exists()
    beside = _done(tmp_path / "runs")
    (message,) = beside.messages
    assert message.startswith("so_clip: left out: ")
    assert text in message
    assert good.name in beside.out


def test_places_without_runs_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for place, text in (
        ("empty", "no run in it"),
        ("absent", "there is no such folder"),
        ("file", "is a file. Give run folders"),
    ):
        done = call("rescore", tmp_path / place)
        assert (done.code, len(done.messages)) == (2, 1)
        assert text in done.messages[0]
    assert call("rescore").code == 2
    run = write_kept_run(tmp_path / "runs")
    (run / LOGITS_FILE).unlink()
    done = call("rescore", tmp_path / "runs")
    assert done.code == 2
    assert "no run has kept logits" in done.messages[0]


@pytest.mark.slow
def test_rescoring_needs_no_torch(tmp_path):
    write_kept_run(tmp_path)
    code = "import sys\nfrom so_clip.__main__ import main\nassert main() == 0\n"
    assert python(f"{code}print('torch' in sys.modules)", "rescore", tmp_path).endswith("False\n")


def test_the_example_of_the_page_reads_a_file(tmp_path, monkeypatch, capsys):
    page = ROOT / "docs" / "reference" / "logits_file.md"
    (block,) = (block for block in blocks(page) if block.kind == "python")
    monkeypatch.chdir(write_kept_run(tmp_path))
    kept = read_logits(Path(LOGITS_FILE))
    exec(block.text, {})
    right = (kept.models[""].rank_N == 0).mean()
    assert f"accuracy {right:.4f}" in capsys.readouterr().out


@pytest.mark.slow
def test_scores_of_real_runs_are_those_of_their_metrics(tmp_path):
    write_eurosat(tmp_path / "data")
    write_dtd(tmp_path / "data")
    options = ("evaluation.workers=0", "schedule.max_steps=3", "shots=2", "dataset=eurosat")
    places = (f"data_root={tmp_path / 'data'}", f"results_dir={tmp_path / 'runs'}")
    for more in (
        ["method=so", "transfer=[dtd]"],
        ["method=clip_lora", "protocol=base_to_new"],
        ["method=tip_adapter"],
        ["method=zero_shot"],
    ):
        done = call(*options, *places, *more)
        assert done.code == 0, done.err
    _done(tmp_path / "runs", "-o", tmp_path / "out")
    rows = [row for row in _rows(tmp_path / "out" / "scores.csv") if not row["temperature"]]
    assert len(rows) == 2 * 2 + 2 * 2 + 2 + 1
    for row in rows:
        metrics = json.loads((Path(row["folder"]) / "metrics.json").read_text())
        name, prefix = row["test_set"], "" if row["model"] == "adapted" else "zero_shot_"
        values = metrics.get("transfer", {}).get(name) or metrics.get(name) or metrics
        for key in ("accuracy_percent", "mean_class_accuracy_percent"):
            assert float(row[key]) == values[f"{prefix}{key}"]
        error = float(row["expected_calibration_error_15_bins_percent"])
        assert error == values[f"{prefix}expected_calibration_error_percent"]


def test_runs_on_sentences_have_nothing_to_score_again(tmp_path):
    folder = write_sentence_run(tmp_path / "sentences")
    write_sentence_run(tmp_path / "sentences", seed=2)
    for place in (folder, tmp_path / "sentences"):
        failed = call("rescore", place)
        assert failed.code == 2
        (message,) = failed.messages
        assert message.count(f"{place}: runs on sentences keep no logits") == 1
        assert "Give runs on images." in message
    write_kept_run(tmp_path / "both")
    write_sentence_run(tmp_path / "both")
    done = _done(tmp_path / "both")
    assert "runs on sentences keep no logits" in done.err
