"""The file by which a run is watched from outside."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest

from so_clip import progress
from so_clip.progress import Progress


def _read(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "progress.json").read_text())
    return values


def test_it_says_where_a_run_is_and_who_is_at_work(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "WRITE_EVERY_SECONDS", 0)
    told = Progress(tmp_path, 100)
    told.start()
    begun = _read(tmp_path)
    assert begun["pid"] == os.getpid()
    assert begun["host"]
    assert begun["started_at"].endswith("+00:00")
    assert [begun[key] for key in ("step", "max_steps", "loss", "seconds_left", "stage")] == [
        *(0, 100, None, None, "train")
    ]
    since = time.monotonic()
    told.after_step(40, 2.5)  # of them, 40 were an earlier process's
    time.sleep(0.2)
    told.after_step(60, 1.5)
    seconds = time.monotonic() - since
    later = _read(tmp_path)
    assert (later["step"], later["loss"]) == (60, 1.5)
    assert 0.4 <= later["seconds_left"] <= 2 * seconds + 0.1  # 40 steps at the pace of 20
    told.evaluate()
    last = _read(tmp_path)
    assert (last["stage"], last["seconds_left"]) == ("evaluate", None)
    assert last["started_at"] == begun["started_at"]


def test_it_is_not_written_at_every_step(tmp_path):
    told = Progress(tmp_path, 100)
    told.start()
    told.after_step(1, 2.5)
    assert _read(tmp_path)["step"] == 0


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_null(tmp_path, monkeypatch, loss):
    monkeypatch.setattr(progress, "WRITE_EVERY_SECONDS", 0)
    Progress(tmp_path, 100).after_step(1, loss)
    assert _read(tmp_path)["loss"] is None


def test_a_folder_that_cannot_be_written_ends_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    Progress(tmp_path / "file", 100).start()


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Progress(None, 100).start()
    assert [*tmp_path.iterdir()] == []
