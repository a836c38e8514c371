"""progress.json, from which other processes see the state of a run."""

import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from so_clip.errors import InputError
from so_clip.results import progress
from so_clip.results.progress import Progress
from so_clip.results.run_folder import RunFolder
from tests.helpers.clock import Clock
from tests.helpers.command import call


def _read(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "progress.json").read_text())
    return values


def test_it_has_the_state_of_the_run_and_its_process(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(progress, "WRITE_EVERY_SECONDS", 0)
    progress_file = Progress(tmp_path, 100)
    progress_file.evaluate()  # zero-shot
    assert (_read(tmp_path)["stage"], _read(tmp_path)["step"]) == ("evaluate", 0)
    progress_file.train()
    begun = _read(tmp_path)
    assert begun["pid"] == os.getpid()
    assert begun["host"]
    assert begun["started_at"].endswith("+00:00")
    assert [begun[key] for key in ("step", "max_steps", "loss", "seconds_left", "stage")] == [
        *(0, 100, None, None, "train")
    ]
    progress_file.after_step(40, 2.5)  # an earlier process took these 40 steps
    clock.now += 10
    progress_file.after_step(60, 1.5)
    later = _read(tmp_path)
    assert (later["step"], later["loss"]) == (60, 1.5)
    assert later["seconds_left"] == 20  # 40 steps at 20 steps in 10 seconds
    progress_file.evaluate()
    last = _read(tmp_path)
    assert (last["stage"], last["seconds_left"]) == ("evaluate", None)
    assert last["started_at"] == begun["started_at"]


def test_it_is_not_written_at_every_step(tmp_path):
    progress_file = Progress(tmp_path, 100)
    progress_file.train()
    progress_file.after_step(1, 2.5)
    assert _read(tmp_path)["step"] == 0


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_null(tmp_path, monkeypatch, loss):
    monkeypatch.setattr(progress, "WRITE_EVERY_SECONDS", 0)
    Progress(tmp_path, 100).after_step(1, loss)
    assert _read(tmp_path)["loss"] is None


def test_a_folder_that_cannot_be_written_does_not_end_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    Progress(tmp_path / "file", 100).evaluate()


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Progress(None, 100).evaluate()
    assert [*tmp_path.iterdir()] == []


def test_it_is_updated_while_test_images_are_classified(tmp_path, monkeypatch):
    progress_file = Progress(tmp_path, 0)
    progress_file.evaluate()
    (tmp_path / "progress.json").unlink()
    progress_file.tick()
    assert not (tmp_path / "progress.json").exists(), "it was written a moment ago"
    monkeypatch.setattr(progress, "WRITE_EVERY_SECONDS", 0)
    progress_file.tick()
    assert _read(tmp_path)["stage"] == "evaluate"


def test_a_clock_that_is_set_back_does_not_change_the_estimate(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "WRITE_EVERY_SECONDS", 0)
    times = iter(["2026-01-02T00:00:00+00:00", *["2026-01-01T00:00:00+00:00"] * 9])
    monkeypatch.setattr(progress, "_now", lambda: next(times))
    progress_file = Progress(tmp_path, 100)
    progress_file.train()
    for step in (10, 20, 100):
        progress_file.after_step(step, 1.0)
        left = _read(tmp_path)["seconds_left"]
        assert left is None or 0 <= left < 60
    assert left == 0


@pytest.mark.slow
def test_a_whole_run_updates_it_from_zero_shot_to_the_last_image(tmp_path, monkeypatch):
    """Its first state is written before any other file of the folder."""
    monkeypatch.setattr(progress, "WRITE_EVERY_SECONDS", 0)
    seen: list[tuple[str, int, bool]] = []
    write = Progress._write

    def noting(self: Progress) -> None:
        write(self)
        (file,) = tmp_path.glob("*/progress.json")
        values = json.loads(file.read_text())
        seen.append((values["stage"], values["step"], (file.parent / "config.yaml").exists()))

    monkeypatch.setattr(Progress, "_write", noting)
    done = call(
        *("experiment=demo", "schedule.max_steps=3", "evaluation.workers=0"),
        *("evaluation.batch_size=256", "evaluation.cache_dir=null", f"results_dir={tmp_path}"),
    )
    assert done.code == 0, done.err
    # Before and after training: the start of the stage, three image batches, one logit batch.
    assert seen == [
        *[("evaluate", 0, False)] * 5,
        ("train", 0, True),
        *(("train", step, True) for step in (1, 2, 3)),
        *[("evaluate", 3, True)] * 5,
    ]
    assert not [*tmp_path.glob("*/progress.json")]


def test_a_run_that_is_refused_at_its_images_leaves_no_progress(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with suppress(InputError), folder.claimed():
        assert folder.watched(10)
        raise InputError("an image is damaged")
    assert [*tmp_path.iterdir()] == []
