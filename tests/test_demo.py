"""The promise of `make demo`: on real digits it never trained on, SO gains what README says."""

import json
from pathlib import Path

import pytest

from tests.command import spawn


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_four_shots_gain_fifteen_points_over_zero_shot(seed: int, tmp_path: Path) -> None:
    outcome = spawn("experiment=demo", f"seed={seed}", f"results_dir={tmp_path}")
    assert outcome.code == 0, outcome.err
    (file,) = tmp_path.glob("*/metrics.json")
    metrics = json.loads(file.read_text())
    assert metrics["zero_shot_accuracy_percent"] >= 60
    assert metrics["accuracy_percent"] >= metrics["zero_shot_accuracy_percent"] + 15
    assert str(file.parent) in outcome.out
