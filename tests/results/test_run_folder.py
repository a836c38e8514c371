"""The run folder: the content of its files, its lock, and what is removed."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from so_clip.errors import InputError, RunBusy, RunFailed
from so_clip.results.run_files import read_metrics
from so_clip.results.run_folder import RunFolder
from so_clip.system.locks import is_locked
from tests.helpers.command import python
from tests.helpers.status_runs import METRICS as SCORES

CONFIG = {"shots": 4, "optimizer": {"lr": 2e-4, "betas": [0.9, 0.999]}, "split_file": None}
METRICS = SCORES | {"run_fingerprint": "f1"}


def _names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def _rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [*csv.reader(file)]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "digits-so")


def test_the_configuration_and_the_few_shot_images_are_recorded(folder):
    folder.start(CONFIG, {"train": [["a.jpg", 0]], "val": [], "sha256": "0"})
    assert OmegaConf.to_container(OmegaConf.load(folder.path / "config.yaml")) == CONFIG
    assert json.loads((folder.path / "fewshot.json").read_text())["train"] == [["a.jpg", 0]]


def test_a_run_without_few_shot_images_records_none(folder):
    folder.start(CONFIG, None)
    assert _names(folder.path) == ["config.yaml"]


def test_a_second_attempt_starts_with_an_empty_folder(folder):
    folder.start(CONFIG, {"train": []})
    folder.write_history([1.0], [1e-3])
    folder.finish({"accuracy_percent": 1.0}, "table")
    folder.start(CONFIG, None)
    assert _names(folder.path.parent) == ["digits-so", "digits-so/config.yaml"]


CLAIM = """
import sys
from pathlib import Path
from so_clip.results.run_folder import RunFolder
try:
    with RunFolder(Path(sys.argv[1])).claimed():
        print("claimed")
except ValueError as error:
    print(type(error).__name__, error)
"""


def test_one_attempt_at_a_time(folder):
    with folder.claimed():
        folder.start(CONFIG, None)
        said = python(CLAIM, folder.path)
        assert said.startswith("RunBusy")
        assert "another process is running this configuration" in said
        assert OmegaConf.to_container(OmegaConf.load(folder.path / "config.yaml")) == CONFIG
        with pytest.raises(RunBusy), RunFolder(folder.path).claimed():
            pass
    # A process that ended, in any way, does not block the next one.
    assert python(CLAIM, folder.path) == "claimed\n"
    with pytest.raises(KeyboardInterrupt), folder.claimed():
        raise KeyboardInterrupt
    assert python(CLAIM, folder.path) == "claimed\n"
    assert _names(folder.path) == ["config.yaml"]


def test_a_claim_without_a_start_leaves_nothing(folder, tmp_path):
    with folder.claimed():
        assert folder.path.is_dir()
    with pytest.raises(InputError), folder.claimed():
        raise InputError("shots=0: no")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("begun", "keep_refusals", "error", "code"),
    [
        (True, False, InputError("the disk is full"), 2),
        (True, False, RunFailed("the loss became nan"), 1),
        (False, False, ZeroDivisionError("a bug"), 1),
        (False, True, InputError("an image is damaged"), 2),
    ],
)
def test_an_error_is_recorded_in_the_folder(folder, begun, keep_refusals, error, code):
    with suppress(type(error)), folder.claimed(["seed=1", "a='b c'"], keep_refusals):
        if begun:
            folder.start(CONFIG, None)
        raise error
    values = json.loads((folder.path / "error.json").read_text())
    assert (values["kind"], values["message"]) == (type(error).__name__, str(error))
    assert values["exit_code"] == code
    assert values["overrides"] == ["seed=1", "a='b c'"]
    assert values["traceback"].startswith("Traceback")
    assert values["traceback"].endswith(f"{error}\n")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", values["failed_at"])
    with folder.claimed():
        folder.start(CONFIG, None)
    assert _names(folder.path) == ["config.yaml"]


def test_an_error_with_invalid_unicode_is_recorded(folder):
    with suppress(RunFailed), folder.claimed(["data_root=\udcff"]):
        raise RunFailed("no image \udcff.png")
    values = json.loads((folder.path / "error.json").read_text(encoding="utf-8"))
    assert values["message"] == r"no image \udcff.png"
    assert values["traceback"].endswith("no image \\udcff.png\n")
    assert values["overrides"] == [r"data_root=\udcff"]


def test_a_folder_that_is_removed_during_a_claim_is_made_again(folder):
    """A process without work removes the empty folder, even while another one claims it."""
    claims = f"for _ in range(100):\n    exec({CLAIM!r})"
    with ThreadPoolExecutor(2) as pool:
        said = [*pool.map(lambda _: python(claims, folder.path), range(2))]
    for item in said:
        assert {line.split()[0] for line in item.splitlines()} <= {"claimed", "RunBusy"}
        assert len(item.splitlines()) == 100
    assert not folder.path.exists()


def test_a_run_is_finished_if_its_metrics_are_complete_and_have_its_fingerprint(folder, capsys):
    assert folder.finished("f1") is None
    folder.start(CONFIG, None)
    folder.finish(METRICS, "table")
    assert folder.finished("f1") == METRICS
    assert capsys.readouterr().err == ""
    assert folder.finished("f2") is None
    damaged = [METRICS | {"shots": "4"}, METRICS | {"new_accuracy_percent": float("nan")}]
    for content in ("{", "[]", "{}", "", *map(json.dumps, damaged)):
        (folder.path / "metrics.json").write_text(content)
        assert folder.finished("f1") is None
    (folder.path / "metrics.json").write_text(json.dumps(METRICS))
    assert folder.finished("f1") == METRICS
    (folder.path / "config.yaml").unlink()
    assert folder.finished("f1") is None
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 8
    assert all(str(folder.path) in item and "counts as unfinished" in item for item in said)


def test_the_files_of_a_killed_attempt_are_removed(folder):
    (folder.path / "inner").mkdir(parents=True)
    for name in ("metrics.json", ".metrics.json.x", "inner/file"):
        (folder.path / name).write_text("{}")
    folder.start(CONFIG, None)
    assert _names(folder.path.parent) == ["digits-so", "digits-so/config.yaml"]


def test_the_lock_is_released_if_the_progress_file_cannot_be_removed(folder):
    with folder.claimed():
        folder.watched(3)
        (folder.path / "progress.json").unlink()
        (folder.path / "progress.json").mkdir()
    assert is_locked(folder.path) is False
    (folder.path / "progress.json").rmdir()
    with folder.claimed():
        pass


@pytest.mark.parametrize("finished", [False, True])
def test_a_checkpoint_survives_a_kill_but_not_a_finished_run(folder, finished):
    folder.path.mkdir(parents=True)
    left = ("checkpoint.pt", "progress.json", ".checkpoint.pt.x", "history.csv")
    for name in (*left, *(["metrics.json"] if finished else [])):
        (folder.path / name).write_text("{}")
    folder.start(CONFIG, None)
    kept = ["config.yaml", "progress.json"]  # until the next attempt writes its own
    assert _names(folder.path) == (kept if finished else ["checkpoint.pt", *kept])
    folder.finish({"accuracy_percent": 1.0}, "table")
    assert _names(folder.path) == ["config.yaml", "metrics.json", "summary.txt"]


def test_the_files_of_a_process_killed_at_its_end_are_removed(folder):
    folder.start(CONFIG, None)
    folder.finish(METRICS, "table")
    left = ("checkpoint.pt", "progress.json", ".lock", ".metrics.json.x.partial")
    for claimed in (True, False):
        for name in left:
            (folder.path / name).touch()
        with folder.claimed() if claimed else nullcontext():
            assert folder.finished("f1") == METRICS
        assert _names(folder.path) == ["config.yaml", "metrics.json", "summary.txt"]


def test_nothing_is_removed_from_a_finished_run_that_is_repeated(folder):
    folder.start(CONFIG, None)
    folder.finish(METRICS, "table")
    (folder.path / "progress.json").touch()
    with folder.claimed():
        assert RunFolder(folder.path).finished("f1") == METRICS
        kept = ["config.yaml", "metrics.json", "progress.json", "summary.txt"]
        assert _names(folder.path) == [".lock", *kept]


def test_changed_has_one_row_per_tensor(folder):
    folder.write_changed(
        [("a.b", 2, 0, "text", 7, "mlp_in"), ("visual.proj", 10, 3, "vision", None, "projection")]
    )
    assert _rows(folder.path / "changed.csv") == [
        ["tensor", "parameters", "changed", "tower", "block", "role"],
        ["a.b", "2", "0", "text", "7", "mlp_in"],
        ["visual.proj", "10", "3", "vision", "", "projection"],
    ]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*results_dir=FOLDER"):
        RunFolder(tmp_path / "file" / "run").start(CONFIG, None)


def test_history_has_one_row_per_step_with_all_digits(folder):
    losses, lrs = [1.0986122886681098, float("nan")], [0.1 + 0.2, 1e-6]
    folder.write_history(losses, lrs)
    header, *rows = _rows(folder.path / "history.csv")
    assert header == ["step", "loss", "lr"]
    assert [row[0] for row in rows] == ["1", "2"]
    assert float(rows[0][1]) == losses[0]
    assert [float(row[2]) for row in rows] == lrs
    assert rows[1][1] == "nan"


def test_predictions_have_one_row_per_image_with_any_name(folder):
    paths = ["a,b/1.jpg", 'quo"te.jpg', "ünï.jpg", "line\nbreak.jpg"]
    folder.write_columns(
        "predictions.csv", {"path": paths, "label": [0, 1, 2, 3], "confidence": [0.5] * 4}
    )
    header, *rows = _rows(folder.path / "predictions.csv")
    assert header == ["path", "label", "confidence"]
    assert [row[0] for row in rows] == paths
    assert [row[1] for row in rows] == ["0", "1", "2", "3"]


def test_columns_of_different_lengths_are_refused(folder):
    with pytest.raises(ValueError, match="zip"):
        folder.write_columns("predictions.csv", {"path": ["a"], "label": [0, 1]})
    with pytest.raises(ValueError, match="zip"):
        folder.write_history([1.0], [])
    assert not folder.path.exists()


def test_metrics_are_written_last(folder, monkeypatch):
    order = []
    replace = Path.replace
    monkeypatch.setattr(
        Path, "replace", lambda self, to: (order.append(to.name), replace(self, to))[1]
    )
    folder.finish({"accuracy_percent": 50.0}, "accuracy  50 %")
    assert order == ["summary.txt", "metrics.json"]
    assert read_metrics(folder.path / "metrics.json") == {"accuracy_percent": 50.0}
    assert (folder.path / "summary.txt").read_text() == "accuracy  50 %\n"


def _rename(folder: Path) -> None:
    folder.parent.rename(folder.parent.with_name("elsewhere"))


def _replace(folder: Path) -> None:
    """Put another process's folder of the same configuration in the place of this one."""
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "config.yaml").touch()


_WRITES: dict[str, Callable[[RunFolder], object]] = {
    "finish": lambda folder: folder.finish(METRICS, "table"),
    "history": lambda folder: folder.write_history([1.0], [0.1]),
    "provenance": lambda folder: folder.write_provenance({}),
    "progress": lambda folder: folder.watched(10),
    "start": lambda folder: folder.start(CONFIG, None),
}


@pytest.mark.parametrize("write", _WRITES)
@pytest.mark.parametrize("lose", [shutil.rmtree, _rename, _replace])
def test_a_run_whose_folder_is_removed_or_renamed_fails_and_leaves_nothing(folder, lose, write):
    """Otherwise the folder has metrics.json without config.yaml, and counts as finished."""

    def work() -> None:
        with folder.claimed():
            folder.start(CONFIG, None)
            lose(folder.path)
            _WRITES[write](folder)

    with pytest.raises(RunFailed, match="was removed or renamed while its run worked"):
        work()
    left = ["config.yaml"] if lose is _replace else []
    assert _names(folder.path) == left


def test_a_removed_folder_is_noticed_without_locks_too(folder, monkeypatch):
    monkeypatch.setattr("so_clip.results.run_folder.lock_folder", lambda folder: None)

    def work() -> None:
        with folder.claimed():
            folder.start(CONFIG, None)
            shutil.rmtree(folder.path)
            folder.finish(METRICS, "table")

    with pytest.raises(RunFailed, match="was removed or renamed"):
        work()
    assert not folder.path.exists()


def test_a_folder_moved_behind_a_link_is_the_same_folder(folder):
    with folder.claimed():
        folder.start(CONFIG, None)
        place = folder.path.parent
        place.rename(place.with_name("elsewhere"))
        place.symlink_to(place.with_name("elsewhere"))
        folder.finish(METRICS, "table")
        assert folder.finished("f1") == METRICS


@pytest.mark.parametrize("name", ["progress.json", "checkpoint.pt", "metrics.json"])
def test_a_folder_in_place_of_a_file_is_refused_in_words(name, tmp_path):
    (tmp_path / "run" / name).mkdir(parents=True)
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(InputError, match=f"{name}: is a folder"), folder.claimed():
        pass
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]
