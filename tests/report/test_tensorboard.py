"""TensorBoard reads the values of the CSV and JSON files from the event files."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from so_clip.results.interval import wilson
from tests.helpers.command import call, spawn
from tests.helpers.sentence_folders import ITEMS, write_sentence_run

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

SETTINGS: dict[str, Any] = {
    "dataset": "digits",
    "transfer": ["dtd", "eurosat"],
    "imbalance": None,
    "optimizer": {"lr": 2e-4, "T": 10, "order": "prune_first"},
    "augment": {"flip": True},
    "results_dir": "elsewhere",
}
METRICS: dict[str, Any] = {
    "steps": 3,
    "accuracy_percent": 81.25,
    "zero_shot_accuracy_percent": 61.5,
    "peak_memory_mib": 44,
    "final_loss": None,
    "settings": SETTINGS,
}


def _run(root: Path, name: str = "a", metrics: dict[str, Any] | None = METRICS) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("{}\n")
    (folder / "history.csv").write_text("step,loss,lr\n1,2.5,0.5\n2,1.25,0.25\n3,0.75,0.125\n")
    (folder / "curve.csv").write_text("step,accuracy_percent\n2,70.5\n")
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def _export(root: Path, logdir: Path) -> str:
    outcome = call("tensorboard", root, "-o", logdir)
    assert outcome.code == 0, outcome.err
    return outcome.out


def _events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def _points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = _events(folder)
    tags = events.Tags()["scalars"]
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in tags}


def test_curves_values_and_settings_are_read_back(tmp_path: Path) -> None:
    _run(tmp_path / "runs", "deeper/a")
    logdir = tmp_path / "logs"
    assert _export(tmp_path / "runs", logdir).startswith("1 new or changed run; ")
    assert _points(logdir / "deeper" / "a") == {
        "train/loss": [(1, 2.5), (2, 1.25), (3, 0.75)],
        "train/lr": [(1, 0.5), (2, 0.25), (3, 0.125)],
        "test/accuracy_percent": [(2, 70.5)],
        "final/accuracy_percent": [(3, 81.25)],
        "final/zero_shot_accuracy_percent": [(3, 61.5)],
        "final/peak_memory_mib": [(3, 44.0)],
    }
    contents = _events(logdir / "deeper" / "a").PluginTagToContent("hparams")
    started = metadata.parse_session_start_info_plugin_data(
        contents[metadata.SESSION_START_INFO_TAG]
    )
    found = {
        name: getattr(value, str(value.WhichOneof("kind")))
        for name, value in started.hparams.items()
    }
    assert found == {
        "dataset": "digits",
        "transfer": "['dtd', 'eurosat']",
        "imbalance": "None",
        "optimizer.lr": 2e-4,
        "optimizer.T": 10.0,
        "optimizer.order": "prune_first",
        "augment.flip": True,
    }


def test_only_new_and_changed_runs_are_written(tmp_path: Path) -> None:
    runs, logdir = tmp_path / "runs", tmp_path / "logs"
    first = _run(runs, "a")
    _run(runs, "b")
    assert _export(runs, logdir).startswith("2 new or changed runs; ")
    (kept,) = (logdir / "b").iterdir()
    seen = kept.stat()
    _run(runs, "c")
    (first / "history.csv").write_text("step,loss,lr\n1,9,1\n")
    assert _export(runs, logdir).startswith("2 new or changed runs; ")
    assert kept.stat() == seen
    assert len(list((logdir / "a").iterdir())) == 1
    assert _points(logdir / "a")["train/loss"] == [(1, 9.0)]
    assert _export(runs, logdir).startswith("0 new or changed runs; ")
    shutil.rmtree(logdir)
    assert _export(runs, logdir).startswith("3 new or changed runs; ")


def test_a_diverged_run_has_its_losses(tmp_path: Path) -> None:
    folder = _run(tmp_path / "runs", metrics=None)
    (folder / "history.csv").write_text("step,loss,lr\n1,2.5,0.5\n2,nan,0.5\n")
    (folder / "curve.csv").unlink()
    _export(tmp_path / "runs", tmp_path / "logs")
    points = _points(tmp_path / "logs" / "a")
    assert set(points) == {"train/loss", "train/lr"}
    assert str(points["train/loss"]) == "[(1, 2.5), (2, nan)]"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("history.csv", "step,loss,lr\n1,2.5\n"),
        ("history.csv", "step,loss\n1,2.5\n"),
        ("history.csv", "step,loss,lr\nx,2.5,1\n"),
        ("curve.csv", "\0"),
        ("metrics.json", "{"),
    ],
)
def test_torn_runs_are_left_out_and_named(name: str, text: str, tmp_path: Path) -> None:
    runs, logdir = tmp_path / "runs", tmp_path / "logs"
    (_run(runs, "torn") / name).write_text(text)
    _run(runs, "whole")
    outcome = call("tensorboard", runs, "-o", logdir)
    assert outcome.code == 0
    (message,) = outcome.messages
    assert message.startswith(f"so_clip: left out: {runs / 'torn' / name}")
    assert [path.name for path in logdir.iterdir()] == ["whole"]


def test_an_unwritable_logdir_is_bad_input(tmp_path: Path) -> None:
    _run(tmp_path / "runs")
    (tmp_path / "file").touch()
    outcome = spawn("tensorboard", tmp_path / "runs", "-o", tmp_path / "file")
    assert outcome.code == 2
    assert f"cannot write {tmp_path / 'file'}" in outcome.err


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no run in it to export. Give the folder that holds run folders"),
        ({"a/config.yaml": "{}"}, "no run in it to export. Its runs have measured nothing yet."),
        ({"a/metrics.json": "{"}, "no run in it to export. Left out: "),
    ],
)
def test_a_folder_without_a_run_to_export_is_bad_input(
    files: dict[str, str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    for name, text in files.items():
        (tmp_path / "runs" / name).parent.mkdir()
        (tmp_path / "runs" / name).write_text(text)
    outcome = call("tensorboard", tmp_path / "runs", "-o", tmp_path / "logs")
    assert (outcome.code, outcome.out) == (2, "")
    assert f"{tmp_path / 'runs'}: {message}" in outcome.messages[0]
    assert not (tmp_path / "logs").exists()


def test_a_missing_folder_is_bad_input(tmp_path: Path) -> None:
    outcome = call("tensorboard", tmp_path / "no", "-o", tmp_path / "logs")
    assert outcome.code == 2
    assert not (tmp_path / "logs").exists()


def test_a_run_on_sentences_has_its_interval_and_settings(tmp_path: Path) -> None:
    folder = write_sentence_run(tmp_path / "runs", right=158, steps=2)
    logdir = tmp_path / "logs"
    assert _export(tmp_path / "runs", logdir).startswith("1 new or changed run; ")
    points = _points(logdir / folder.name)
    assert len(points["train/loss"]) == 2
    ((_, low),), ((_, high),) = (points[f"final/accuracy_{end}_percent"] for end in ("low", "high"))
    assert (low, high) == pytest.approx(wilson(158, ITEMS), rel=1e-6)
    assert not any("zero_shot" in tag for tag in points)
