"""The promise of `make demo`: on real digits it never trained on, SO gains what README says."""

import json
from pathlib import Path

import pytest

from so_clip.system.paths import CONF_DIR
from tests.helpers.command import spawn


def test_the_demo_knows_every_kind_of_so() -> None:
    """What it sets for one of them, see conf/experiment/by_optimizer/, the others need as well."""
    kinds = {path.stem for path in (CONF_DIR / "optimizer").glob("so*.yaml")}
    known = {path.stem for path in (CONF_DIR / "experiment" / "by_optimizer").glob("demo_*.yaml")}
    assert {f"demo_{kind}" for kind in kinds} == known


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_four_shots_gain_fifteen_points_over_zero_shot(seed: int, tmp_path: Path) -> None:
    outcome = spawn("experiment=demo", f"seed={seed}", f"results_dir={tmp_path}")
    assert outcome.code == 0, outcome.err
    (file,) = tmp_path.glob("*/metrics.json")
    metrics = json.loads(file.read_text())
    assert metrics["zero_shot_accuracy_percent"] >= 60
    assert metrics["accuracy_percent"] >= metrics["zero_shot_accuracy_percent"] + 15
    assert str(file.parent) in outcome.out
