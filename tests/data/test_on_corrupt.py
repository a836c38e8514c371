"""Runs over datasets with corrupt images: an error names them, or the run skips and counts them."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command import Outcome, call
from tests.helpers.made_datasets import write_dtd, write_eurosat

QUICK = ("evaluation.workers=2", "evaluation.batch_size=10", "schedule.max_steps=1", "shots=2")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_eurosat(tmp_path / "data")
    return tmp_path / "data"


def _call(root: Path, *arguments: str) -> Outcome:
    return call(
        "dataset=eurosat",
        f"data_root={root}",
        f"results_dir={root.parent / 'runs'}",
        "method=so",
        "adapter.encoder=text",
        *QUICK,
        *arguments,
    )


def _run(root: Path, *arguments: str) -> tuple[dict[str, Any], Path, Outcome]:
    done = _call(root, *arguments)
    assert done.code == 0, done.err
    folder = Path(done.out.rpartition("run folder")[2].strip())
    return json.loads((folder / "metrics.json").read_text()), folder, done


def _cut(root: Path, *paths: str) -> None:
    for path in paths:
        file = root / "eurosat" / "2750" / path
        file.write_bytes(file.read_bytes()[:200])


def _drawn(folder: Path) -> list[str]:
    return [path for path, _ in json.loads((folder / "fewshot.json").read_text())["train"]]


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return [*csv.DictReader(stream)]


def _names(rows: Sequence[dict[str, str]]) -> list[tuple[str, str, str]]:
    return [(row["dataset"], row["split"], row["path"]) for row in rows]


@pytest.mark.slow
def test_without_corrupt_images_skip_and_raise_are_the_same_run(root):
    metrics, folder, done = _run(root)
    assert (metrics["skipped_train_images"], metrics["skipped_test_images"]) == (0, 0)
    again, same, repeated = _run(root, "on_corrupt=skip")
    assert same == folder
    assert again == metrics
    assert "finished before" in repeated.out
    assert done.messages == repeated.messages == []
    forced, *_ = _run(root, "on_corrupt=skip", "force=true")
    for key in ("run_fingerprint", "fewshot_sha256", "accuracy_percent", "final_loss"):
        assert forced[key] == metrics[key]
    assert not (folder / "skipped.csv").exists()
    assert "skipped images" not in repeated.out


def test_a_corrupt_training_image_is_replaced_and_test_images_are_left_out(root):
    whole, folder, _ = _run(root)
    drawn = _drawn(folder)
    _cut(root, drawn[3], "bee/test_1.png", "ant/test_0.png")
    refused = _call(root, "seed=1", "force=true")
    assert refused.code == 2
    assert f"{drawn[3]}: the image cannot be decoded" in refused.err
    metrics, other, done = _run(root, "on_corrupt=skip")
    assert other != folder
    assert metrics["fingerprint"] == whole["fingerprint"]
    assert (metrics["skipped_train_images"], metrics["skipped_test_images"]) == (1, 2)
    assert metrics["test_images"] == whole["test_images"] - 2
    again = _drawn(other)
    assert [a == b for a, b in zip(drawn, again, strict=True)].count(False) == 1
    assert again[3] != drawn[3]
    assert again[3].split("/")[0] == drawn[3].split("/")[0]
    skipped = _rows(other / "skipped.csv")
    tests = [("eurosat", "test", f"{name}.png") for name in ("ant/test_0", "bee/test_1")]
    assert _names(skipped) == [("eurosat", "train", drawn[3]), *tests]
    assert all(row["reason"].startswith("the image cannot be decoded") for row in skipped)
    tested = {row["path"]: row for row in _rows(other / "predictions.csv")}
    assert len(tested) == metrics["test_images"]
    assert not {path for *_, path in tests} & {*tested}
    # The others are tested as they were: what is left out changes no other image's features.
    before = {row["path"]: row for row in _rows(folder / "predictions.csv")}
    key = "zero_shot_prediction"
    assert all(row[key] == before[path][key] for path, row in tested.items())
    assert "1 train, 2 test: see skipped.csv" in (other / "summary.txt").read_text()
    assert json.loads((other / "provenance.json").read_text())["skipped_images"] == 3
    assert [line for line in done.messages if "1 training and 2 test images" in line]
    assert "finished before" in _run(root, "on_corrupt=skip")[2].out


@pytest.mark.slow
def test_corrupt_images_of_other_test_sets_are_counted_there(root):
    write_dtd(root)
    file = root / "dtd" / "images" / "grid" / "test_0.png"
    file.write_bytes(b"no image")
    _cut(root, "ant/test_2.png", "eel/test_0.png")
    metrics, folder, _ = _run(root, "on_corrupt=skip", "protocol=base_to_new", "transfer=[dtd]")
    assert metrics["skipped_test_images"] == 2  # of base and of new classes
    assert metrics["transfer"]["dtd"]["skipped_test_images"] == 1
    assert metrics["transfer"]["dtd"]["test_images"] == 8
    assert _names(_rows(folder / "skipped.csv")) == [
        ("eurosat", "test", "ant/test_2.png"),
        ("eurosat", "test", "eel/test_0.png"),
        ("dtd", "test", "grid/test_0.png"),
    ]
    assert "3 test: see skipped.csv" in (folder / "summary.txt").read_text()


def test_a_class_without_a_readable_training_image_ends_the_run(root):
    _cut(root, *(f"cat/train_{index}.png" for index in range(6)))
    done = _call(root, "on_corrupt=skip")
    assert done.code == 2
    assert "class 2 ('cat') of eurosat has no train image that can be decoded" in done.err
    assert not (root.parent / "runs").exists() or not [*(root.parent / "runs").glob("eurosat-*")]


def test_a_missing_image_is_not_skipped(root):
    (root / "eurosat" / "2750" / "ant" / "test_0.png").unlink()
    done = _call(root, "on_corrupt=skip")
    assert done.code == 2
    assert "1 of 25 images" in done.err
    assert "missing, first ant/test_0.png" in done.err


@pytest.mark.slow
def test_a_missing_replacement_of_a_corrupt_image_is_named(root):
    ants = root / "eurosat" / "2750" / "ant"
    _, folder, _ = _run(root)
    drawn = [path for path in _drawn(folder) if path.startswith("ant/")]
    _cut(root, drawn[0])
    for file in ants.glob("train_*"):
        if f"ant/{file.name}" not in drawn:
            file.unlink()
    done = _call(root, "on_corrupt=skip")
    assert done.code == 2
    assert "the image is missing" in done.err
    assert "Traceback" not in done.err


def test_other_values_of_on_corrupt_are_refused(root):
    done = _call(root, "on_corrupt=ignore")
    assert done.code == 2
    assert "on_corrupt=ignore: must be raise or skip." in done.err
