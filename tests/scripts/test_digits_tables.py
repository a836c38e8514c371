"""A small part of the tables of runs on digits, run twice."""

import json

import pandas as pd
import pytest

pytest.importorskip("matplotlib", reason="the benchmark's tables need the pretrain extra")

from scripts import digits_tables
from scripts.digits import runs
from tests.helpers.scripts_in_process import InProcess

FILE = "predictions.csv"


@pytest.mark.slow
def test_rates_come_from_training_images_and_finished_runs_are_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RATES", (1, 3))
    monkeypatch.setattr(runs, "START", (1, 3))
    monkeypatch.setattr(digits_tables, "STEPS", 2)

    monkeypatch.setattr(runs, "ProcessPoolExecutor", InProcess)
    arguments = ["--only", "methods", "--methods", "adamw", "tip_adapter", "zero_shot"]
    arguments += ["--shots", "1", "2", "--seeds", "1", "--out", str(tmp_path)]
    digits_tables.main(arguments)
    table = pd.read_csv(tmp_path / "tables" / "digits_methods.csv")
    assert list(table["method"]) == ["adamw", "adamw", "tip_adapter", "tip_adapter", "zero_shot"]
    assert table["lr"].dropna().nunique() == 1
    folders = sorted((tmp_path / "runs" / "digits").rglob("metrics.json"))
    assert len(folders) == 2 + 5
    for file in folders:
        tested_on = json.loads(file.read_text())["tested_on"]
        assert tested_on == ("training" if "rates" in file.parts else "test")
    times = [folder.stat().st_mtime_ns for folder in folders]
    digits_tables.main(arguments)
    assert [folder.stat().st_mtime_ns for folder in folders] == times
    # No image that selected a rate is a test image.
    chosen, tested = (
        {path for f in folders if part in f.parts for path in pd.read_csv(f.parent / FILE)["path"]}
        for part in ("rates", "methods")
    )
    assert chosen
    assert not chosen & tested
