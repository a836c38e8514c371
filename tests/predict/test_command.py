"""`python -m so_clip predict`: a run's predictions again, any images, formats, and bad input."""

import csv
import io
import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from so_clip.adapters import open_saved, save
from so_clip.escape import csv_text
from tests.helpers.command import Outcome, call, environment
from tests.helpers.made_datasets import write_class_folders, write_image
from tests.helpers.whole_runs import Run, run

NAMES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_class_folders(folder, NAMES, images=6)
    return folder


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory) -> Run:
    options = ["dataset=folder", f"data_root={photos}", "shots=1", "schedule.max_steps=2"]
    return run(tmp_path_factory.mktemp("runs"), "experiment=demo", *options)


def changed(finished: Run, file: Path, **about: object) -> Path:
    """Write the run's adapter with other metadata."""
    adapter = open_saved(finished.folder).adapter
    save(replace(adapter, about=adapter.about.model_copy(update=about)), file)
    return file


def predict(*arguments: object) -> Outcome:
    return call("predict", *arguments)


def objects(done: Outcome) -> list[dict]:
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


def typed(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))


def test_the_test_images_of_a_run_get_the_predictions_of_the_run(finished, photos, tmp_path):
    rows = finished.rows("predictions.csv")
    adapter = changed(finished, tmp_path / "plain.safetensors", temperature=None)
    done = predict(adapter, *(photos / row["path"] for row in rows), "--format", "jsonl")
    found = objects(done)
    assert [Path(one["path"]) for one in found] == [photos / row["path"] for row in rows]
    best = [one["predictions"][0] for one in found]
    assert [str(one["label"]) for one in best] == [row["prediction"] for row in rows]
    assert [one["class"] for one in best] == [row["prediction_name"] for row in rows]
    expected = [float(row["confidence"]) for row in rows]
    assert [one["confidence"] for one in best] == pytest.approx(expected)
    assert "not calibrated" in done.messages[0]
    assert done.messages[-1] == f"so_clip: {len(rows)} images are classified."


def test_the_temperature_calibrates_the_confidences(finished, photos, tmp_path):
    plain = changed(finished, tmp_path / "1.safetensors", temperature=1.0)
    tempered = changed(finished, tmp_path / "2.safetensors", temperature=2.0)
    images = photos / "ant"
    one, two = (predict(file, images, "--format", "jsonl") for file in (plain, tempered))
    assert "calibrated" not in one.err
    for before, after in zip(objects(one), objects(two), strict=True):
        roots = [found["confidence"] ** 0.5 for found in before["predictions"]]
        confidences = [found["confidence"] for found in after["predictions"]]
        assert confidences == pytest.approx([root / sum(roots) for root in roots])


def test_folders_patterns_and_a_list_are_read_and_written_as_csv(finished, photos, monkeypatch):
    typed(monkeypatch, f"{photos}/cat/1.png\n{photos}/cat/0.png\n".encode())
    done = predict(finished.folder, "-", photos / "ant", f"{photos}/bee/[45].png", "--top", "2")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    names = [f"ant/{place}.png" for place in range(6)]
    names += ["bee/4.png", "bee/5.png", "cat/1.png", "cat/0.png"]
    assert [row["path"] for row in rows[::2]] == [f"{photos}/{name}" for name in names]
    assert [row["rank"] for row in rows] == ["1", "2"] * len(names)


def test_hostile_names_are_escaped_and_read_back(finished, tmp_path, monkeypatch):
    odd = [b"-d.png", b"a,b.png", b"\x1b[31mred.png", b"two\nlines.png", b"\xff.png", b"=1.png"]
    for place, name in enumerate(odd):
        write_image(tmp_path / "image.png", place)
        (tmp_path / "image.png").rename(tmp_path / os.fsdecode(name))
    monkeypatch.chdir(tmp_path)
    typed(monkeypatch, b"\0".join(odd))
    done = predict(finished.folder, "-", "-0", "--top", "1", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert [os.fsencode(csv_text(row["path"])) for row in rows] == odd
    done = predict(finished.folder, "--format", "table", "--", ".", "-d.png")
    assert done.code == 0
    assert "\x1b" not in done.out + done.err


def test_unreadable_images_are_named_counted_and_skipped(finished, photos, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").touch()
    out = tmp_path / "out.csv"
    done = predict(finished.folder, tmp_path, photos / "ant", tmp_path / "none.png", "-o", out)
    assert (done.code, done.out) == (0, "")
    assert done.messages[-1] == "so_clip: 6 images are classified, 2 could not be read."
    for name in ("text.jpg", "empty.png", "none.png"):
        assert sum(f"{tmp_path / name}: " in message for message in done.messages) == 1
    assert len(list(csv.DictReader(out.open()))) == 6 * len(NAMES)
    out.unlink()
    done = predict(finished.folder, tmp_path, "-o", out)
    assert (done.code, out.exists()) == (2, False)
    assert "none of the 2 images can be read" in done.messages[-1]


def test_other_classes_replace_those_of_the_run(finished, photos, tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("oak, red\nyew\nelm\nash\n")
    done = predict(finished.folder, photos / "ant", "--classes-file", file, "--format", "jsonl")
    for one in objects(done):
        found = one["predictions"]
        assert sorted(each["class"] for each in found) == ["ash", "elm", "oak, red", "yew"]
    assert "fitted on the run's classes" in done.err or "not calibrated" in done.err
    bound = changed(finished, tmp_path / "bound.safetensors", class_bound=True)
    done = predict(bound, photos / "ant", "--classes", "oak,yew")
    assert (done.code, done.out) == (2, "")
    assert "cannot classify others" in done.messages[-1]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["RUN"], "IMAGES: there is no image"),
        (["RUN", "empty"], "IMAGES: there is no image"),
        (["RUN", "RUN", "a.png"], "is the folder of a run, and images are expected here"),
        (["RUN", "a.png", "-o", "a.json"], "no format has the suffix .json"),
        (["RUN", "empty/*.png"], "empty/*.png: there is no such file"),
        (["RUN", "a.png", "-0"], "-0: goes with -"),
        (["RUN", "a.png", "-o", "empty"], "is not a plain file"),
        (["RUN", "a.png", "-o", "none/out.csv"], "none does not exist"),
        (["RUN", "a.png", "-o", "a.png"], "predictions are text"),
        (["RUN", "list", "-o", "list"], "this file is read"),
        (["RUN", "a.png", "--classes-file", "list", "-o", "list"], "this file is read"),
        (["RUN", "a.png", "-o", "RUN/predictions.csv"], "belongs to the run"),
        (["RUN", "a.png", "--top", "0"], "--top"),
        (["RUN", "a.png", "--batch-size", "0"], "--batch-size"),
        (["RUN", "a.png", "--device", "tpu"], "device=tpu"),
        (["RUN", "a.png", "--format", "xml"], "--format"),
        (["RUN", "a.png", "--classes", "oak"], "--classes: gives 1 class"),
        (["empty", "a.png"], "empty"),
        (["a.png", "a.png"], "a.png"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(
    finished, tmp_path, monkeypatch, arguments, part
):
    (tmp_path / "empty").mkdir()
    write_image(tmp_path / "a.png", 1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list").write_text("oak\nyew\n")
    files = [tmp_path / "a.png", tmp_path / "list", finished.folder / "predictions.csv"]
    before = [file.read_bytes() for file in files]
    done = predict(*[word.replace("RUN", str(finished.folder)) for word in arguments])
    assert (done.code, done.out) == (2, "")
    assert part in done.messages[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "empty", "list"]
    assert [file.read_bytes() for file in files] == before


def test_a_list_without_end_on_stdin_is_refused(finished, monkeypatch):
    monkeypatch.setattr("so_clip.cli.predict.MAX_LIST_BYTES", 9)
    monkeypatch.setattr("so_clip.predict.gather.MAX_LIST_BYTES", 9)
    typed(monkeypatch, b"a" * 99)
    done = predict(finished.folder, "-")
    assert done.code == 2
    assert "-: stdin has more than" in done.err


@pytest.mark.slow
@pytest.mark.parametrize(("redirect", "code"), [(">/dev/full", 2), (">&-", 0), ("<&-", 0)])
def test_output_that_is_full_or_closed_gives_no_traceback(finished, photos, redirect, code):
    words = [sys.executable, "-m", "so_clip", "predict", finished.folder, photos]
    done = subprocess.run(
        f"{shlex.join(map(str, words))} {redirect}",
        shell=True,
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "unexpected" not in done.stderr
    assert ("stdout: cannot be written" in done.stderr) == bool(code)


@pytest.mark.slow
def test_the_command_ends_quietly_if_the_reader_of_its_output_has_enough(finished, photos):
    process = subprocess.Popen(
        [sys.executable, "-m", "so_clip", "predict", finished.folder, photos, "--batch-size", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "path,rank,label,class,confidence\n"
    process.stdout.close()
    assert process.wait() == 0
    messages = process.stderr.read()
    process.stderr.close()
    assert "Broken" not in messages
    assert "Traceback" not in messages
