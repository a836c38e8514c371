"""Whole meta-trainings in this process: files, skipping, resuming, and what chooses the state."""

import json
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from so_clip.adapters import open_saved
from so_clip.data.episodes.sampler import EpisodeDraw, EpisodeSampler
from so_clip.errors import InputError
from so_clip.meta.records import TestRecords
from so_clip.smat.checkpoint_file import load_checkpoint
from so_clip.smat.task import Task
from so_clip.smat.training import MetaTraining, TaskRecord
from tests.helpers.command import call
from tests.helpers.made_datasets import write_dtd, write_eurosat
from tests.helpers.meta_runs import contents, meta, rows, run_folder

HEADS = ["text", "prototype", "mean", "frozen_text", "frozen_prototype", "frozen_mean"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished meta-training, and its data in `data`."""
    folder = tmp_path_factory.mktemp("meta")
    write_eurosat(folder / "data")
    write_dtd(folder / "data")
    outcome = meta(folder, folder / "data")
    assert outcome.code == 0, outcome.err
    assert f"adapter.checkpoint={run_folder(folder)}/smat.safetensors" in outcome.out
    assert "-m method=smat" in outcome.out
    for option in ("ways=[2,2]", "queries=2", "images=6", "varied_shots=true"):
        assert f"episodes.{option}" in outcome.out
    assert ", target 0.9, lambda" in outcome.out
    return folder


def test_the_folder_has_the_documented_files(done: Path) -> None:
    assert sorted(path.name for path in run_folder(done).iterdir()) == sorted(
        [
            *("config.yaml", "history.csv", "masks.csv", "metrics.json", "overlap.csv"),
            *("provenance.json", "smat.safetensors", "sparsity.csv", "summary.txt", "test.csv"),
            "validation.csv",
        ]
    )


def test_the_tables_have_a_row_for_each_thing_they_measure(done: Path) -> None:
    run = run_folder(done)
    assert [int(row["tasks"]) for row in rows(run / "history.csv")] == [*range(2, 15, 2)]
    assert {(row["tasks"], row["expert"]) for row in rows(run / "sparsity.csv")} == {
        (str(tasks), expert) for tasks in range(2, 15, 2) for expert in "01"
    }
    validation = rows(run / "validation.csv")
    assert [(row["tasks"], row["head"]) for row in validation] == [
        (tasks, head) for tasks in ("8", "14") for head in HEADS
    ]
    assert {row["source"] for row in validation} == {"digits"}
    tested = rows(run / "test.csv")
    assert [(row["target"], row["head"], row["tasks"]) for row in tested] == [
        ("eurosat", head, "2") for head in HEADS
    ]
    masks = rows(run / "masks.csv")
    assert {row["role"] for row in masks} == {"attention_in", "attention_out", "mlp_in", "mlp_out"}
    assert len(rows(run / "overlap.csv")) == 1


def test_the_metrics_are_those_of_the_chosen_state(done: Path) -> None:
    run = run_folder(done)
    metrics = json.loads((run / "metrics.json").read_text())
    validation = [row for row in rows(run / "validation.csv") if row["head"] == "text"]
    best = max(validation, key=lambda row: float(row["accuracy_percent"]))
    assert metrics["kind"] == "meta"
    assert metrics["chosen_tasks"] == int(best["tasks"])
    assert metrics["validation_accuracy_percent"] == float(best["accuracy_percent"])
    saved = load_checkpoint(run)
    assert saved.about["tasks"] == metrics["chosen_tasks"]
    assert saved.about["sources"] == ["digits"]
    assert metrics["sparsities"] == saved.smat.experts.sparsity_M().tolist()
    assert metrics["parameters"] == sum(value.numel() for value in saved.smat.parameters())
    assert 0 < metrics["weights_mib"] < metrics["peak_memory_mib"] < 300


def test_a_finished_run_is_skipped(done: Path) -> None:
    before = contents(run_folder(done))
    assert "finished before: skipped" in meta(done, done / "data").out
    assert contents(run_folder(done)) == before


@pytest.mark.slow
def test_force_repeats_a_finished_run_with_the_same_result(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done / "meta", tmp_path / "meta")
    run = run_folder(tmp_path)
    (run / "smat.safetensors").write_bytes(b"stale")
    (run / "best-8.safetensors").write_bytes(b"stale")
    assert "finished before" not in meta(tmp_path, done / "data", "force=true").out
    assert contents(run) == contents(run_folder(done))


@pytest.mark.slow
def test_threads_that_decode_and_the_memory_for_images_change_nothing(
    done: Path, tmp_path: Path
) -> None:
    words = ("workers=2", "image_budget_mib=0.001")
    assert meta(tmp_path, done / "data", *words).code == 0
    assert contents(run_folder(done)) == contents(run_folder(tmp_path))


def stopping(method: Callable[..., Any], at: int) -> Callable[..., Any]:
    """Return a method that is interrupted at a call, counted from 1."""
    calls = count(1)

    def call_or_stop(*arguments: Any) -> Any:
        if next(calls) == at:
            raise KeyboardInterrupt
        return method(*arguments)

    return call_or_stop


@pytest.mark.parametrize(
    ("place", "method", "at", "left"),
    [
        pytest.param(MetaTraining, "learn", 14, 2, id="within an update"),
        pytest.param(
            MetaTraining, "learn", 13, 2, id="first task of an update", marks=pytest.mark.slow
        ),
        pytest.param(TestRecords, "add", 2, 0, id="test", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_continues_bit_for_bit(
    place: type,
    method: str,
    at: int,
    left: int,
    done: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(place, method, stopping(getattr(place, method), at))
        assert meta(tmp_path, done / "data", "checkpoint_seconds=1e-9").code == 130
    stopped = run_folder(tmp_path)
    assert (stopped / "checkpoint.pt").exists()
    assert not (stopped / "metrics.json").exists()
    learned, learn = [], MetaTraining.learn

    def counting(self: MetaTraining, task: Task) -> TaskRecord:
        learned.append(task)
        return learn(self, task)

    monkeypatch.setattr(MetaTraining, "learn", counting)
    assert meta(tmp_path, done / "data", "checkpoint_seconds=1e-9").code == 0
    assert len(learned) == left
    whole, resumed = contents(run_folder(done)), contents(stopped)
    assert [key for key in whole | resumed if whole.get(key) != resumed.get(key)] == []


@pytest.mark.slow
def test_a_best_file_of_another_state_is_not_resumed_from(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(MetaTraining, "learn", stopping(MetaTraining.learn, 14))
        assert meta(tmp_path, done / "data", "checkpoint_seconds=1e-9").code == 130
    stopped = run_folder(tmp_path)
    (best,) = stopped.glob("best-*.safetensors")
    best.write_bytes(best.read_bytes()[:-100])
    refused = meta(tmp_path, done / "data", "checkpoint_seconds=1e-9")
    assert refused.code == 2
    assert f"{best}: is not the file that this run wrote" in refused.err
    assert meta(tmp_path, done / "data").code == 0
    assert contents(run_folder(done)) == contents(stopped)


@pytest.mark.slow
def test_no_test_task_is_drawn_before_training_ends_and_targets_change_nothing(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    draw, learn = EpisodeSampler.draw, MetaTraining.learn

    def drawn(self: EpisodeSampler, number: int) -> EpisodeDraw:
        order.append(self._stream_name.partition("/")[2])
        return draw(self, number)

    def learned(self: MetaTraining, task: Task) -> TaskRecord:
        order.append("learn")
        return learn(self, task)

    monkeypatch.setattr(EpisodeSampler, "draw", drawn)
    monkeypatch.setattr(MetaTraining, "learn", learned)
    assert meta(tmp_path, done / "data", "targets=[dtd]").code == 0
    assert {*order} == {"train", "validation", "test", "learn"}
    last_use = max(index for index, what in enumerate(order) if what != "test")
    assert order.index("test") > last_use
    ours, theirs = run_folder(tmp_path), run_folder(done)
    assert (ours / "smat.safetensors").read_bytes() == (theirs / "smat.safetensors").read_bytes()
    assert ours.name != theirs.name


@pytest.mark.slow
def test_the_last_state_can_be_chosen_without_any_validation(done: Path, tmp_path: Path) -> None:
    words = ("select=last", "validation_tasks=0", "test_tasks=0", "episodes.varied_shots=false")
    assert meta(tmp_path, done / "data", *words, "shots=2").code == 0
    run = run_folder(tmp_path)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["chosen_tasks"] == 14
    assert metrics["validation_accuracy_percent"] is None
    assert metrics["test"] == {}
    assert not (run / "validation.csv").exists()
    assert not (run / "test.csv").exists()


def test_status_shows_a_meta_training_and_tables_leave_it_out(done: Path) -> None:
    shown = call("status", done / "meta", "--once")
    assert shown.code == 0
    assert "1 done" in shown.cells
    assert "meta-training on digits" in " ".join(shown.out.split())
    for command in ("table", "report"):
        outcome = call(command, done / "meta")
        assert outcome.code == 2
        assert "is a meta-training, not a run of a method" in outcome.err
    with pytest.raises(InputError, match=r"is a meta-training.* method=smat adapter\.checkpoint="):
        open_saved(run_folder(done))


def test_status_names_a_damaged_record(done: Path, tmp_path: Path) -> None:
    run = tmp_path / "meta" / "run"
    shutil.copytree(run_folder(done), run)
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"tasks": "many"}))
    shown = call("status", tmp_path / "meta", "--once")
    assert shown.code == 1
    assert "tasks is 'many'" in " ".join(shown.out.split())


def test_an_encoder_without_text_learns_with_prototypes_only(done: Path, tmp_path: Path) -> None:
    words = [
        *("backbone.architecture=timm:test_vit@32", "backbone.pretrained=null"),
        *("validate_every=20", "validation_tasks=1", "test_tasks=1", "training.tasks=2"),
    ]
    refused = meta(tmp_path, done / "data", *words)
    assert refused.code == 2
    assert "training.head=text" in refused.err
    assert "training.head=prototype" in refused.err
    assert not (tmp_path / "meta").exists()
    assert meta(tmp_path, done / "data", *words, "training.head=prototype").code == 0
    assert {row["head"] for row in rows(run_folder(tmp_path) / "test.csv")} == {
        "prototype",
        "frozen_prototype",
    }
